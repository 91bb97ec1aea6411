"""Rows of a data set on the hub, read through the datasets library at one commit, or from its cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftctl.errors import DataError, MachineError, PeftctlError, UsageError
from peftctl.model.hub_errors import COMMIT, DATA_SET, Asked, asked, causes, disk_is_full, explained, out_of_reach
from peftctl.nearest import nearest

README = "README.md"
DESCRIBING = (README, ".huggingface.yaml", "dataset_infos.json")
FIRST_CONFIG, FIRST_SPLIT, SHOWN_REASON = "default", "train", 200


@dataclass(frozen=True)
class HubRows:
    """One split of a data set at one commit. ``asked`` is the branch or tag that the commit was found by, if any."""

    repo: str
    config: str | None
    split: str
    revision: str
    asked: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.repo}, config {self.config or FIRST_CONFIG}, split {self.split}, at commit {self.revision[:12]}"


def find(
    repo: str, config: str | None, split: str | None, revision: str | None, note: Callable[[str], None]
) -> HubRows:
    """The rows that are meant, at the commit that ``revision`` (default: main) is now.

    The config is the only one, the one the README calls the default, or "default"; the split is "train" or the only
    one. Nothing is asked for a commit whose prepared copy is in datasets' cache. Where the hub is out of reach, such
    a copy serves, and ``note`` hears so. Raises UsageError for a data set, revision, config or split there is not,
    DataError for files that are no rows, MachineError for network, access and disk.
    """
    of = asked(DATA_SET, repo, revision)
    if _offline():
        return _instead(of, config, split, "HF_HUB_OFFLINE is set", note)
    if COMMIT.fullmatch(of.revision) and (found := _pinned(of, config, split)):
        return found  # a commit never changes, so there is nothing to ask
    try:
        layout = _Layout(of, _commit(of))
        config = _chosen(of, "config", config, layout.configs, layout.default)
        split = _chosen(of, "split", split, layout.splits(config), FIRST_SPLIT)
        return HubRows(repo, config, split, layout.commit, of.revision)
    except PeftctlError:
        raise
    except Exception as error:  # what the library raises over a README or files it cannot use is listed nowhere
        if not (unreachable := next(filter(None, map(out_of_reach, causes(error))), "")):
            what = f"{of}: its README or the names of its files make no configs and splits"
            raise _explained(error, of, what) from None
    return _instead(of, config, split, unreachable, note)


def rows(found: HubRows, *, streaming: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row, in order, with its number from 1. Values are plain Python; media stay as bytes and path.

    A prepared copy in datasets' cache is read where there is one. Else ``streaming`` reads from the hub as it goes,
    and without it the whole config is downloaded and prepared first. Raises DataError for a file that cannot be
    parsed, and what `find` raises.
    """
    of = asked(DATA_SET, found.repo, found.asked or found.revision)
    try:
        copy = _prepared(found)
        if copy is None:
            if _offline():
                raise MachineError(f"{of}: HF_HUB_OFFLINE is set, and {_cache()} holds no prepared copy", of.offline)
            builder = _Layout(of, found.revision).builder(found.config)
            if not streaming:
                # The README's counts are not held against the files: they are often stale, and the commit pins both.
                builder.download_and_prepare(verification_mode="no_checks")
                copy = _prepared(replace(found, config=builder.config.name))
        if copy is not None:
            of.remember(found.revision)
            builder = copy
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0
        yield from enumerate(_undecoded(builder.as_streaming_dataset(split=found.split)), start=1)
    except PeftctlError:
        raise
    except Exception as error:  # what the parsers of all those formats raise cannot be listed
        raise _explained(error, of, f"{found}: a file cannot be parsed") from None


def _library() -> Any:
    """datasets, silent: it would log what is raised too, and tell a server which data sets are read."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    return datasets


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.is_offline_mode() or _library().config.HF_HUB_OFFLINE)


def _cache() -> Path:
    return Path(_library().config.HF_DATASETS_CACHE).expanduser()


def _commit(of: Asked) -> str:
    """The commit that the revision is now. Raises DataError where what it holds is a loading script."""
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().dataset_info(of.repo, revision=of.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit, names = str(info.sha), {file.rfilename for file in info.siblings or []}
        if not COMMIT.fullmatch(commit):  # it becomes a path in the cache
            raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        raise explained(error, of) from None
    if (script := f"{of.repo.split('/')[-1]}.py") in names:
        what = f"{of}: comes with the loading script {script}, and code of a data set is never run"
        raise DataError(what, "take a data set or a revision that holds plain files: JSON, Parquet, CSV")
    return commit


class _Layout:
    """Which configs and splits a commit holds, as datasets sees it from the README and the names of the files.

    Made without ``load_dataset``: that takes a local folder of the same name for the data set, and whatever commit is
    in its cache where anything at all goes wrong.
    """

    def __init__(self, of: Asked, commit: str) -> None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        _library()
        from datasets.load import HubDatasetModuleFactory, get_dataset_builder_class

        for name in DESCRIBING:  # the library goes on without those it fails to get: other configs, other rows
            try:
                hf_hub_download(of.repo, name, repo_type=DATA_SET.repo_type, revision=commit)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise
        self.commit = commit
        self._module = HubDatasetModuleFactory(of.repo, commit_hash=commit).get_module()
        self._builder_class = get_dataset_builder_class(self._module)
        parameters = self._module.builder_configs_parameters
        self.configs = [each.name for each in parameters.builder_configs]
        self.default = parameters.default_config_name or FIRST_CONFIG

    def builder(self, config: str | None) -> Any:
        info = (self._module.dataset_infos or {}).get(config)
        module = self._module
        return self._builder_class(config_name=config, hash=module.hash, info=info, **module.builder_kwargs)

    def splits(self, config: str) -> list[str]:
        return [str(name) for name in self.builder(config).config.data_files]


def _chosen(of: Asked, what: str, wanted: str | None, names: Collection[str], default: str) -> str:
    """The config or split of that name, or where none is wanted the default or only one."""
    if wanted is None and len(names) == 1:
        return next(iter(names))
    if (name := default if wanted is None else wanted) in names:
        return name
    problem = f"no such {what} (found {wanted})" if wanted is not None else f"holds several {what}s, so name one"
    near = nearest(name, names)
    meant = f"; did you mean {near}?" if near else ""
    raise UsageError(f"{of}: {problem}; allowed: {', '.join(sorted(names))}{meant}")


def _copies(repo: str, commit: str) -> dict[str, tuple[str, list[str]]]:
    """The prepared copies of that commit: by config, their version and their splits."""
    _library()
    from datasets.naming import camelcase_to_snakecase

    *owner, name = repo.split("/")
    home, copies = _cache() / "___".join([*owner, camelcase_to_snakecase(name)]), {}
    for path in sorted(home.glob(f"*/*/{commit}/dataset_info.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            info, (config, version) = json.loads(path.read_text(encoding="utf-8")), path.parts[-4:-2]
            if info["config_name"] == config:  # else it was made with settings of its own
                copies[config] = (version, list(info["splits"]))
    return copies


def _configs_by_readme(of: Asked, commit: str) -> tuple[list[str], str] | None:
    """The configs and the default one, by the README in the hub's cache; None where that was never fetched."""
    _library()
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, try_to_load_from_cache

    if (path := try_to_load_from_cache(of.repo, README, revision=commit, repo_type=DATA_SET.repo_type)) is None:
        return None
    configs = MetadataConfigs()
    if isinstance(path, str):  # else the hub said that there is none
        with suppress(OSError, ValueError):
            configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(path).data)
    return list(configs) or [FIRST_CONFIG], configs.get_default_config_name() or FIRST_CONFIG


def _pinned(of: Asked, config: str | None, split: str | None) -> HubRows | None:
    """What is meant, if the cache alone can tell and holds it prepared."""
    copies = _copies(of.repo, of.revision)
    if config is None and copies and (known := _configs_by_readme(of, of.revision)):
        config = _chosen(of, "config", None, *known)
    if config is None or config not in copies:
        return None
    return HubRows(of.repo, config, _chosen(of, "split", split, copies[config][1], FIRST_SPLIT), of.revision)


def _instead(of: Asked, config: str | None, split: str | None, why: str, note: Callable[[str], None]) -> HubRows:
    """The prepared copy in datasets' cache, in place of the hub that is out of reach, said aloud."""
    commit = of.commit()
    copies = _copies(of.repo, commit) if commit else {}
    if commit is None or not copies:
        raise MachineError(f"{of}: {why}, and {_cache()} holds no prepared copy", of.offline)
    names, default = _configs_by_readme(of, commit) or (list(copies), FIRST_CONFIG)
    config = _chosen(of, "config", config, {*names, *copies}, default)
    if config not in copies:
        raise MachineError(f"{of}: {why}, and {_cache()} holds no prepared copy of config {config}", of.offline)
    split = _chosen(of, "split", split, copies[config][1], FIRST_SPLIT)
    note(f"{of}: {why}; using the cached commit {commit}")
    return HubRows(of.repo, config, split, commit, of.revision)


def _prepared(found: HubRows) -> Any:
    """The builder that reads the prepared copy, or None."""
    config, name = found.config, found.repo.split("/")[-1]
    version, splits = _copies(found.repo, found.revision).get(config or "", ("", []))
    if found.split not in splits:
        return None
    from datasets.packaged_modules.cache.cache import Cache

    return Cache(dataset_name=name, repo_id=found.repo, config_name=config, version=version, hash=found.revision)


def _undecoded(dataset: Any) -> Any:
    """The rows with images, audio and their like left as they are stored. Their columns are no use for text."""
    features = deepcopy(dataset.features)
    if not features or not _stop_decoding(features):
        return dataset
    return dataset.cast(type(features)(dict(features)))  # made anew, since it keeps which columns are decoded


def _stop_decoding(feature: Any) -> bool:
    """Whether the feature holds media, whose ``decode`` is then set to False. Json is decoded: it is plain Python."""
    if isinstance(feature, dict):
        return any([_stop_decoding(part) for part in feature.values()])
    if hasattr(feature, "feature"):
        return _stop_decoding(feature.feature)
    if not hasattr(feature, "decode") or isinstance(feature, _library().Json):
        return False
    feature.decode = False
    return True


def _concerns_hub_or_disk(error: Exception) -> bool:
    """Whether the network, the hub's answer or this machine is to blame, not what the files hold."""
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    blamed = (httpx2.HTTPError, HfHubHTTPError, PermissionError)
    met = any(isinstance(e, blamed) and not isinstance(e, EntryNotFoundError) for e in causes(error))
    return met or disk_is_full(error) or bool(isinstance(error, OSError) and error.errno)


def _explained(error: Exception, of: Asked, what: str) -> PeftctlError:
    """The network's or the disk's error as such, and any other as ``what`` is wrong with the files."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    if _concerns_hub_or_disk(error):
        return explained(error, of)
    if isinstance(error, EmptyDatasetError | DataFilesNotFoundError):
        return DataError(f"{of}: holds no files of rows that datasets can read: JSON, Parquet, CSV and others")
    return DataError(f"{what}: {_reason(error)}", "mend the files, or take another revision")


def _reason(error: Exception) -> str:
    """The first line that says something, without the token should it ever stand there."""
    from datasets.exceptions import DatasetGenerationError
    from datasets.table import CastError
    from huggingface_hub import get_token

    cause = next((e for e in causes(error) if not isinstance(e, DatasetGenerationError)), error)
    text = cause.details() if isinstance(cause, CastError) else str(cause)
    line = next(filter(None, map(str.strip, text.splitlines())), "")
    if not line or ((token := get_token()) and token in line):
        return type(cause).__name__
    return line[:SHOWN_REASON]
