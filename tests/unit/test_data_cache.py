"""Rows kept from run to run: what makes another entry and what does not, and that the cache never does harm."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftctl.cache import cache_home
from peftctl.data import cache, encode, prepare, readers, sources
from peftctl.data.collate import Collator
from peftctl.data.encode import Encoding, Rows
from peftctl.data.prepare import Data
from peftctl.errors import DataError, UsageError
from peftctl.evaluation import choices
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.tasks import TASKS, Layout
from tests import tiny
from tests.unit import kinds

TASK = TASKS["causal_lm"]
ROWS = tiny.chats(12)


def recipe(folder: Path, *train: Source, seed: int = 0, **data: Any) -> Recipe:
    settings = DataSettings(train=train or (Source(path="rows.jsonl"),), **data)
    return Recipe(
        ModelSettings(name="m"), settings, LoraSettings(), "out", train=TrainSettings(seed=seed), folder=folder
    )


def encoding(tokenizer: Any = None, longest: int = 200, **settings: Any) -> Encoding:
    return Encoding(TASK, tokenizer or tiny.tokenizer(), longest, **settings)


def made(given: Recipe, how: Encoding | None = None) -> Data:
    """As a run does it: pinned, checked, and taken from the cache or put there."""
    pinned = sources.resolve(given)
    return prepare.prepare(pinned, how or encoding(), prepare.check(pinned, print), print)


def entries() -> list[Path]:
    home = cache_home() / "data"
    return sorted(path for path in home.iterdir() if path.is_dir()) if home.is_dir() else []


def same(one: Rows, other: Rows) -> bool:
    arrays = [(one.of, other.of)] + ([(one.epoch, other.epoch)] if one.epoch is not None else [])
    for name in ("ids", "weights", "bounds"):
        arrays.append((getattr(one.encoded, name), getattr(other.encoded, name)))
    return one.facts() == other.facts() and all(
        a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in arrays
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.jsonl(tmp_path / "rows.jsonl", ROWS)


def test_a_hit_gives_the_same_rows_bit_for_bit(tmp_path: Path, rows: Path) -> None:
    tiny.jsonl(tmp_path / "more.jsonl", [*tiny.chats(9, seed=1), {"messages": [{"role": "user", "content": "q"}]}])
    given = recipe(
        tmp_path,
        Source(path="rows.jsonl", weight=1.5, filter="messages[0].content | length > 15"),
        Source(path="more.jsonl", weight=0.5),
        eval=EvalSource(count=4),
        overlong="truncate_start",
    )
    how = encoding(longest=40, overlong="truncate_start")
    first, second = made(given, how), made(given, how)
    assert (first.cached, second.cached) == (False, True)
    assert len(entries()) == 1
    assert first.eval is not None
    assert second.eval is not None
    assert same(first.train, second.train)
    assert same(first.eval, second.eval)
    facts = second.train.facts()
    assert facts["held_out"] == 4
    assert facts["filtered"]
    assert facts["truncated"]
    assert facts["dropped"] == {"nothing to learn": 1}
    assert facts["rows_an_epoch"] == second.train.per_epoch != len(second.train)
    assert json.loads(json.dumps(facts)) == facts
    assert list(first.train.encoded) == list(second.train.encoded)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": (Source(path="rows.jsonl", limit=11),)},
        {"train": (Source(path="rows.jsonl", filter="messages | length == 2"),)},
        {"train": (Source(path="rows.jsonl", columns={"conversations": "messages"}),)},
        {"train": (Source(path="rows.jsonl", weight=2.0),)},
        {"train": (Source(path="rows.jsonl"), Source(path="rows.jsonl"))},
        {"eval": EvalSource(count=3)},
        {"on_bad_row": "drop"},
    ],
    ids=lambda changes: json.dumps(list(changes)) if isinstance(changes, dict) else "",
)
def test_every_setting_of_reading_makes_another_entry(tmp_path: Path, rows: Path, changes: dict[str, Any]) -> None:
    first = made(recipe(tmp_path))
    train = changes.pop("train", ())
    changed = recipe(tmp_path, *train, **changes)
    assert not made(changed).cached
    assert made(changed).cached
    assert made(recipe(tmp_path)).cached
    assert same(made(recipe(tmp_path)).train, first.train)
    assert len(entries()) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"longest": 40},
        {"learn": "last"},
        {"learn": "all"},
        {"overlong": "split"},
        {"tokenizer": kinds.SPACED},
        {"tokenizer": " " + tiny.CHATML},
        {"tokenizer": (tiny.CHATML, [("s", "o")])},
    ],
    ids=str,
)
def test_everything_that_encoding_depends_on_makes_another_entry(
    tmp_path: Path, rows: Path, changes: dict[str, Any]
) -> None:
    written = changes.pop("tokenizer", None)
    if written is not None:
        changes["tokenizer"] = tiny.tokenizer(*([written] if isinstance(written, str) else written))
    made(recipe(tmp_path))
    assert not made(recipe(tmp_path), encoding(**changes)).cached
    assert made(recipe(tmp_path), encoding(**changes)).cached
    assert made(recipe(tmp_path)).cached
    # What was read and found good need not be read before the model is there.
    assert prepare.check(sources.resolve(recipe(tmp_path)), print) is None


def test_the_token_that_ends_texts_makes_another_entry(tmp_path: Path, rows: Path) -> None:
    made(recipe(tmp_path))
    other = tiny.tokenizer()
    other.eos_token = "<|end|>"
    assert not made(recipe(tmp_path), encoding(other)).cached


def test_a_tokenizer_of_the_same_special_tokens_makes_another_entry(tmp_path: Path, rows: Path) -> None:
    from tokenizers import normalizers

    made(recipe(tmp_path))
    other = tiny.tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("so", "SO")
    assert not made(recipe(tmp_path), encoding(other)).cached


@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_changed_character_makes_another_entry(tmp_path: Path, place: int) -> None:
    texts = [{"text": f"text number {n}"} for n in range(12)]
    path = tiny.jsonl(tmp_path / "rows.jsonl", texts)
    before = made(recipe(tmp_path))
    data = path.read_text()
    at = {0: data.index("text number 0"), 40: data.index("text number 5"), -1: data.rindex("text number")}[place]
    path.write_text(data[:at] + "T" + data[at + 1 :])
    os.utime(path, ns=(0, 0))  # its time says nothing
    after = made(recipe(tmp_path))
    assert not after.cached
    assert not same(before.train, after.train)
    path.write_text(data)
    assert made(recipe(tmp_path)).cached


def test_the_held_out_file_s_contents_make_another_entry(tmp_path: Path, rows: Path) -> None:
    tiny.jsonl(tmp_path / "eval.jsonl", tiny.chats(3, seed=1))
    given = recipe(tmp_path, eval=EvalSource(path="eval.jsonl"))
    made(given)
    assert made(given).cached
    tiny.jsonl(tmp_path / "eval.jsonl", tiny.chats(3, seed=2))
    assert not made(given).cached


def test_the_seed_makes_another_entry_only_where_rows_depend_on_it(tmp_path: Path, rows: Path) -> None:
    made(recipe(tmp_path))
    assert made(recipe(tmp_path, seed=1)).cached
    for apart in (EvalSource(count=2), EvalSource(split=0.2)):
        made(recipe(tmp_path, eval=apart))
        assert made(recipe(tmp_path, eval=apart)).cached
        assert not made(recipe(tmp_path, seed=1, eval=apart)).cached
    half = Source(path="rows.jsonl", weight=0.5)
    made(recipe(tmp_path, half))
    assert not made(recipe(tmp_path, half, seed=1)).cached
    twice = Source(path="rows.jsonl", weight=2.0)
    made(recipe(tmp_path, twice))
    assert made(recipe(tmp_path, twice, seed=1)).cached


def test_other_code_makes_another_entry(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(recipe(tmp_path))
    monkeypatch.setattr(cache, "_code", lambda: "other")
    assert not made(recipe(tmp_path)).cached


def test_the_code_s_hash_is_of_every_file_that_reads_and_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(cache.__file__).parents[1]
    read: list[str] = []
    whole = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.relative_to(package).as_posix())
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert cache._code.__wrapped__() == cache._code()
    assert {
        "data/sources.py", "data/encode.py", "tasks/overlong.py", "data/readers/table.py", "formats/messages.py",
        "tasks/causal_lm.py", "text/chat.py", "text/tokens.py", "recipe/filters.py", "example.py", "data/order.py",
    } <= set(read)  # fmt: skip


def test_another_task_or_format_makes_another_entry(tmp_path: Path, rows: Path) -> None:
    pinned = sources.resolve(recipe(tmp_path))
    other = pinned.with_settings("data", "", train=(pinned.data.train[0].model_copy(update={"format": "text"}),))
    task = pinned.with_settings("task", "", name="embedding")
    names = {cache.reading(each) for each in (pinned, other, task)}
    assert len(names) == 3


@pytest.mark.parametrize("name", ["renamed.jsonl", "deeper/rows.jsonl"])
def test_a_file_that_was_renamed_or_moved_is_known_again(tmp_path: Path, rows: Path, name: str) -> None:
    made(recipe(tmp_path))
    (tmp_path / "deeper").mkdir()
    rows.rename(tmp_path / name)
    found = made(recipe(tmp_path, Source(path=name)))
    assert found.cached
    assert found.train.sources[0].place.file == str(tmp_path / name)


def test_the_same_bytes_under_another_ending_are_not_the_same_rows(tmp_path: Path) -> None:
    """Lines of text, of which a table takes the first for its heading; both are of the format text."""
    for name, count in (("rows.txt", 3), ("rows.csv", 2)):
        (tmp_path / name).write_text("text\na\nb\n")
        found = made(recipe(tmp_path, Source(path=name)))
        assert (found.cached, len(found.train)) == (False, count)


def test_the_same_rows_packed_are_an_entry_of_their_own(tmp_path: Path, rows: Path) -> None:
    first = made(recipe(tmp_path))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows.read_bytes()))
    packed = made(recipe(tmp_path, Source(path="rows.jsonl.gz")))
    assert not packed.cached
    assert same(first.train, packed.train)


def damaged(folder: Path, how: str) -> None:
    if how == "flipped":
        path = folder / "train.ids.npy"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path = folder / "train.weights.npy"
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "missing":
        (folder / "train.of.npy").unlink()
    elif how == "more":
        (folder / "train.epoch.npy").write_bytes((folder / "train.of.npy").read_bytes())
    elif how == "no list":
        (folder / "entry.json").unlink()
    else:
        (folder / "entry.json").write_text(how)


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "more", "no list", "", "{", "[]", "{}", "null"])
def test_an_entry_that_is_not_whole_is_made_anew(tmp_path: Path, rows: Path, how: str) -> None:
    first = made(recipe(tmp_path))
    (folder,) = entries()
    damaged(folder, how)
    second = made(recipe(tmp_path))
    assert not second.cached
    assert same(first.train, second.train)
    third = made(recipe(tmp_path))
    assert third.cached
    assert same(first.train, third.train)
    assert entries() == [folder]


def test_with_a_hit_no_source_is_parsed_yet_choices_find_their_rows(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(tmp_path, eval=EvalSource(count=4))
    first = made(given)
    parsed: list[str] = []
    read = readers.read

    def noted(where: str, file: Any) -> Any:
        parsed.append(where)
        return read(where, file)

    monkeypatch.setattr(readers, "read", noted)
    # The recipe as it is resolved: that names the format, for which the first row is looked at.
    pinned = sources.resolve(given)
    parsed.clear()
    assert prepare.check(pinned, print) is None
    found = prepare.prepare(pinned, encoding(), None, print)
    assert found.cached
    assert list(found.train.encoded) == list(first.train.encoded)
    assert found.train.facts() == first.train.facts()
    assert parsed == []
    assert first.eval is not None
    assert found.eval is not None
    collate = Collator(TASK, tiny.tokenizer(), Layout(0), 500, torch.device("cpu"))
    asked = choices.questions(found.eval.sources, ("odd", "even"), collate, 200)
    assert [question.variants[question.answer] for question in asked] == list(first.eval.encoded)
    assert parsed == [str(rows)]
    assert found.train.sources == first.train.sources


def test_bad_rows_are_never_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("x\n")
    given = recipe(tmp_path, Source(path="rows.jsonl", format="text"))
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows\.jsonl:1"):
            made(given)
    assert entries() == []


def test_settings_without_effect_are_said_though_the_rows_are_there(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    made(recipe(tmp_path))
    with pytest.raises(UsageError, match=r"^data\.learn: has no effect"):
        made(recipe(tmp_path, learn="last"), encoding(learn="last"))


def test_what_nothing_pins_is_not_kept(tmp_path: Path, rows: Path) -> None:
    given = recipe(tmp_path)
    assert cache.reading(given) is None
    for _ in range(2):
        assert not prepare.prepare(given, encoding(), None, print).cached
    assert entries() == []


def _in_another_process(folder: str, gate: Any, answers: Any) -> None:
    modules: Any = encode
    slow = modules.store

    def counted(rows: Any) -> Any:
        answers.put("encoded")
        return slow(rows)

    modules.store = counted
    pinned = sources.resolve(recipe(Path(folder)))
    how = encoding()
    gate.wait(30)
    found = prepare.prepare(pinned, how, None, print)
    answers.put((found.cached, found.train.facts(), found.train.encoded.ids.tobytes()))


def test_two_processes_at_once_make_one_entry_and_agree(tmp_path: Path, rows: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(2), context.Queue()
    started = [context.Process(target=_in_another_process, args=(str(tmp_path), gate, answers)) for _ in range(2)]
    for process in started:
        process.start()
    heard = [answers.get(timeout=60) for _ in range(3)]
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    assert heard.count("encoded") == 1
    one, other = (each for each in heard if each != "encoded")
    assert sorted([one[0], other[0]]) == [False, True]
    assert one[1:] == other[1:]
    assert len(entries()) == 1
    assert [path.name for path in (cache_home() / "data").iterdir()] == [
        entries()[0].name
    ]  # no lock, nothing half made
    assert made(recipe(tmp_path)).cached


def test_a_cache_that_cannot_be_written_to_does_no_harm(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(recipe(tmp_path))
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", tmp_path / "home"):
        monkeypatch.setenv("PEFTCTL_CACHE", str(place))
        if place.name == "home":
            place.mkdir()
            (place / "data").write_text("no folder either")
        for _ in range(2):
            again = made(recipe(tmp_path))
            assert not again.cached
            assert same(first.train, again.train)


def test_a_cache_of_somebody_else_is_read(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its times nor a lock can be written there."""
    first = made(recipe(tmp_path))

    def refuse(*given: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(cache, "lock", refuse)
    monkeypatch.setattr(cache, "publish_directory", refuse)
    again = made(recipe(tmp_path))
    assert again.cached
    assert same(first.train, again.train)
    assert not made(recipe(tmp_path, on_bad_row="drop")).cached


def test_a_full_disk_ends_no_run_and_leaves_nothing(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def full(path: Path, *given: Any, **named: Any) -> None:
        if "weights" in path.name:
            raise OSError(28, "No space left on device")
        save(path, *given, **named)

    monkeypatch.setattr(np, "save", full)
    assert len(made(recipe(tmp_path)).train) == 12
    assert list((cache_home() / "data").iterdir()) == []


def test_a_fault_while_an_entry_is_made_frees_its_lock(tmp_path: Path, rows: Path) -> None:
    pinned = sources.resolve(recipe(tmp_path))
    with pytest.raises(DataError, match="none of the 12 training rows is left"):
        prepare.prepare(pinned, encoding(longest=8), None, print)
    assert list((cache_home() / "data").iterdir()) == []


def test_the_entries_used_longest_ago_are_thrown_out(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[Path] = []
    for limit in (9, 10, 11):
        made(recipe(tmp_path, Source(path="rows.jsonl", limit=limit)))
        (new,) = set(entries()) - set(names)
        names.append(new)
        os.utime(new, (limit, limit))
    assert made(recipe(tmp_path, Source(path="rows.jsonl", limit=9))).cached  # the oldest is now the last used
    assert names[0].stat().st_mtime > 11
    size = max(sum(file.stat().st_size for file in name.iterdir()) for name in names)
    monkeypatch.setattr(cache, "MOST_BYTES", int(size * 3.5))
    made(recipe(tmp_path))  # a fourth one
    assert set(names) & set(entries()) == {names[0], names[2]}
    assert len(entries()) == 3
    monkeypatch.setattr(cache, "MOST_BYTES", 1)
    made(recipe(tmp_path, on_bad_row="drop"))
    assert len(entries()) == 1  # what was just made stays, however large
    assert made(recipe(tmp_path, on_bad_row="drop")).cached


def test_rows_stay_readable_when_their_entry_is_thrown_out(tmp_path: Path, rows: Path) -> None:
    first = made(recipe(tmp_path))
    found = made(recipe(tmp_path))
    shutil.rmtree(entries()[0])
    assert same(first.train, found.train)


def test_clearing_removes_rows_and_copies_and_leaves_models(tmp_path: Path, rows: Path) -> None:
    made(recipe(tmp_path))
    home = cache_home()
    for kind in ("files", "gguf"):
        (home / kind).mkdir()
        (home / kind / "one").write_bytes(b"12345")
    counts = cache.sizes()
    assert {kind: count for kind, (count, _) in counts.items()} == {"data": 1, "files": 1, "gguf": 1}
    assert counts["files"][1] == 5
    assert cache.clear() == counts["data"][1] + 5
    assert cache.sizes() == {"gguf": (1, 5)}
    assert cache.clear() == 0
    assert not made(recipe(tmp_path)).cached


def test_rows_of_a_hub_data_set_are_kept_by_its_commit(tmp_path: Path) -> None:
    pinned = Source(path="owner/name", config="default", hub_split="train", revision="a" * 40, format="text")
    one = recipe(tmp_path, pinned)
    names = {
        cache.reading(recipe(tmp_path, pinned.model_copy(update=update)))
        for update in ({}, {"revision": "b" * 40}, {"config": "x"}, {"hub_split": "test"}, {"path": "owner/other"})
    }
    assert len(names) == 5
    assert cache.reading(one) in names
    assert cache.reading(replace(one, output="elsewhere")) == cache.reading(one)
