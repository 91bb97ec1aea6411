"""A finished run as a value: what its directory says, and its model for use from Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftctl.atomic import sha256
from peftctl.data import sources
from peftctl.data.collate import Collator, plain_layout
from peftctl.data.encode import Encoding, encode
from peftctl.data.sources import Sourced
from peftctl.errors import DataError, UsageError
from peftctl.evaluation.measure import Measurement, measured
from peftctl.example import ROLES, Turn
from peftctl.generate import Sampling, generate
from peftctl.methods import METHODS
from peftctl.model import attach, identity
from peftctl.model import load as loading
from peftctl.model import locate as located
from peftctl.model.fast import FastPaths
from peftctl.model.profile import profile
from peftctl.nearest import nearest
from peftctl.recipe import Recipe
from peftctl.recipe import load as load_recipe
from peftctl.tasks import task_of
from peftctl.text import template
from peftctl.train import rundir

# A resolved recipe names every target: a mixture of experts has tens of thousands.
RESOLVED_BYTES = 50_000_000
# Whose manifests are taken for a run's, by what they say of their kind.
OTHERS = {"merged": "a merge", "export": "an export", "checkpoint": "a checkpoint"}


@dataclass(frozen=True)
class Run:
    """A run directory. ``recipe`` is the resolved one; ``manifest`` is manifest.json as it stands."""

    path: Path
    recipe: Recipe
    manifest: Mapping[str, Any]

    @property
    def artifact(self) -> Path:
        """The folder of what was trained: adapter/, or model/ where the whole model was."""
        return self.path / str(self.manifest["artifact"])

    def check_data(self) -> None:
        """Raises DataError where a data file has changed since training: its held-out rows may be others now."""
        for name, digest in self.manifest["data"]["files"].items():
            if Path(name).is_file() and sha256(Path(name)) != digest:
                raise DataError(
                    f"{name} is not the file it was when this run was trained",
                    "rows held out now may be rows it learned from: name rows to measure on with --data FILE",
                )

    def check_intact(self) -> None:
        """Raises VerificationError naming the first file that is not what the manifest says it is."""
        rundir.check_published(self.path, self.manifest)


@dataclass(frozen=True)
class LoadedRun:
    """A run with its model in memory: the base, with the trained adapter in it."""

    run: Run
    model: Any
    tokenizer: Any
    collate: Collator
    fast: FastPaths

    @contextmanager
    def base(self) -> Iterator[Any]:
        """Within this context the model answers as the untrained base."""
        with self.model.disable_adapter():
            yield self.model

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """What the model answers to a plain prompt, or to messages (each with role and content).

        At ``temperature`` 0 the likeliest token each time; above it tokens are drawn, by ``seed``, among the
        likeliest of mass ``top_p``. At most ``max_new_tokens``, or as many as fit behind the prompt. Raises
        UsageError where a prompt or a number will not do.
        """
        self.check_writes()
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        ids = self.ids(prompt if isinstance(prompt, str) else _turns(prompt))
        return generate(
            self.model, self.tokenizer, ids, replace(sampling, max_new_tokens=min(max_new_tokens, self.room(ids)))
        )

    def check_writes(self) -> None:
        """Raises UsageError where the model writes no text."""
        if not self.collate.task.generates:
            raise UsageError(f"{self.run.path}: {self.collate.task.name} writes no text: peftctl eval measures it")

    def ids(self, asked: str | Sequence[Turn]) -> list[int]:
        """The ids of what is asked. Raises UsageError where the model takes no messages."""
        if not isinstance(asked, str) and not self.collate.task.chats:
            raise UsageError(f"PROMPT: {self.collate.task.name} reads a text, not messages")
        return self.collate.task.prompt(asked, self.tokenizer)

    def room(self, ids: Sequence[int]) -> int:
        """How many tokens the model can write behind these. Raises UsageError where the prompt is empty or fills it."""
        method = self.run.recipe.method
        able = loading.attends_to(self.model.config, self.tokenizer) - METHODS[method.name].positions(method)
        if not ids:
            raise UsageError("PROMPT: nothing to answer")
        if len(ids) >= able:
            raise UsageError(
                f"PROMPT: more than the model can attend to (found {len(ids)} tokens); allowed: under {able}"
            )
        # What reads one text and writes another has the whole length for either.
        return able if self.model.config.is_encoder_decoder else able - len(ids)

    def held_out(self, data: Path | None = None, limit: int | None = None) -> Measurement:
        """The recipe's held-out rows, or those of ``data``, ready to be measured.

        Raises UsageError where there are none, DataError where the recipe's files have changed since training.
        """
        recipe, task = self.run.recipe, self.collate.task
        if data is None:
            self.run.check_data()
        longest = recipe.data.max_length or 0
        encoding = Encoding(task, self.tokenizer, longest, recipe.data.learn, recipe.data.overlong or task.overlong)
        if data is not None:
            examples: Sequence[Sourced] = sources.read_examples(data, "auto", limit, task.name)
        else:
            examples = sources.held_out(recipe)[:limit]
        if not examples:
            raise UsageError(f"{self.run.path}: its recipe holds out no rows", "name some with --data FILE")
        counted = replace(sources.tally(recipe.data), read=len(examples))
        rows = encode(sources.Side(examples, counted), encoding, "held-out")
        return measured(recipe.eval, rows, self.collate, longest)


def _turns(messages: Sequence[Mapping[str, str]]) -> list[Turn]:
    """Messages as turns. Raises UsageError naming the first that is none."""
    turns = []
    for number, message in enumerate(messages, start=1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise UsageError(f"PROMPT: message {number} is not {{role: {' | '.join(ROLES)}, content: text}}")
        turns.append(Turn(role, content))
    if not turns:
        raise UsageError("PROMPT: nothing to answer")
    return turns


def open_run(path: Path) -> Run:
    """The run in ``path``. Raises UsageError where there is no finished one."""
    manifest = path / "manifest.json"
    if not manifest.exists():
        if not path.is_dir():
            near = nearest(
                path.name, [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
            )
            raise UsageError(f"{path}: no such run directory", f"did you mean {path.with_name(near)}?" if near else "")
        if (path / "adapter_config.json").exists():
            raise UsageError(f"{path} is an adapter folder, not a run directory", "name the folder above it")
        raise UsageError(f"{path} holds no manifest.json, so no run was finished there")
    try:
        facts = json.loads(manifest.read_text("utf-8"))
    except ValueError:
        raise UsageError(f"{manifest} is not JSON") from None
    if not isinstance(facts, dict) or facts.get("kind") != "run":
        said = facts if isinstance(facts, dict) else {}
        other = OTHERS.get(str(said.get("kind")))
        of = f"that of {other}, not of a run" if other else "not that of a run"
        came = said.get("run") if other else None
        raise UsageError(f"{manifest} is {of}", f"it was made of {came}" if isinstance(came, str) else "")
    return Run(path.absolute(), load_recipe(path / "resolved.yaml", max_bytes=RESOLVED_BYTES), facts)


def load(path: str | Path, base: str | Path | None = None) -> LoadedRun:
    """The model that a run trained, loaded on the device Accelerate chooses.

    ``base``: where its base model is now, if not where it was. Raises UsageError where there is no finished run, or
    where its base model is not the one it was trained on.
    """
    return loaded(open_run(Path(path)), base)


def loaded(run: Run, base: str | Path | None = None) -> LoadedRun:
    """The same of a run that is open."""
    import torch
    from accelerate import Accelerator

    run.check_intact()
    recipe, task = run.recipe, task_of(run.recipe.task)
    found = located.locate(at_base(run, base), lambda _: None)
    identity.check(found, run.manifest["base"])
    model = loading.load_model(found, recipe.model, task, recipe.model.dtype)
    method = METHODS[recipe.method.name]
    model = attach.load(model, method, recipe.method, run.artifact)
    accelerator = Accelerator()
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()
    tokenizer = loading.load_tokenizer(found, recipe.model)
    template.choose(tokenizer, recipe.data.template, found.name)
    slices_logits = loading.forward_takes(model.get_base_model(), "logits_to_keep")
    products = getattr(torch, recipe.model.dtype)
    virtual, longest = method.virtual_tokens(recipe.method), recipe.data.max_length or 0
    known = profile(model, task, slices_logits, products, virtual, longest=longest)
    fast = FastPaths(recipe.train.fast, known, method)
    tokens = recipe.train.micro_batch_tokens or 0
    collate = Collator(task, tokenizer, fast.layout(plain_layout(tokenizer)), tokens, accelerator.device)
    return LoadedRun(run, model, tokenizer, collate, fast)


def _check_there(run: Run) -> None:
    """Raises UsageError where the run's base model was on this machine, and is no more where it was."""
    base = run.manifest["base"]
    if base["origin"] != "hub" and not Path(base["name"]).exists():
        raise UsageError(
            f"{run.path}: its base model is not at {base['source'] or base['name']} any more",
            "--base PATH says where it is now",
        )


def at_base(run: Run, base: str | Path | None) -> Recipe:
    """The run's recipe with its base at ``base``; where it was a file and its plain folder is gone, with the file."""
    source = run.manifest["base"].get("source")
    if base is not None:
        given = Path(base).expanduser().absolute()
        if not given.exists():
            raise UsageError(f"--base: no such file or folder: {given}")
        where, revision = str(given), None
    elif source and not Path(run.recipe.model.name).exists() and Path(source).exists():
        where, revision = source, None
    else:
        _check_there(run)
        return run.recipe
    return run.recipe.with_settings("model", "--base", name=where, revision=revision)
