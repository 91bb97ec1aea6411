"""A finished run as a value: what its directory says, and its model for use from Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import inventory, sha256
from peftctl.data import encode
from peftctl.data.collate import Collator, pad_id
from peftctl.data.sources import read_examples
from peftctl.errors import DataError, UsageError, VerificationError
from peftctl.evaluation.measure import Measurement
from peftctl.example import Turn
from peftctl.generate import Sampling, encode_prompt, generate
from peftctl.methods import METHODS
from peftctl.model import identity
from peftctl.model import load as loading
from peftctl.model import locate as located
from peftctl.model.fast import FastPaths
from peftctl.model.profile import profile
from peftctl.nearest import nearest
from peftctl.recipe import Recipe
from peftctl.recipe import load as load_recipe
from peftctl.tasks import TASKS

# A resolved recipe names every target: a mixture of experts has tens of thousands.
RESOLVED_BYTES = 50_000_000


@dataclass(frozen=True)
class Run:
    """A run directory. ``recipe`` is the resolved one; ``manifest`` is manifest.json as it stands."""

    path: Path
    recipe: Recipe
    manifest: Mapping[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder that plain peft loads."""
        return self.path / "adapter"

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
        recorded = self.manifest["files"]
        found = {f"adapter/{name}": entry for name, entry in inventory(self.adapter).items()}
        for name in sorted({*recorded, *found}):
            there = self.path / name
            if name not in found and there.is_file():
                found[name] = {"size_bytes": there.stat().st_size, "sha256": sha256(there)}
            if name not in found:
                raise VerificationError(f"{there} is missing, which the run's manifest names")
            if recorded.get(name) != found[name]:
                raise VerificationError(f"{there} is not the file that the run's manifest says was published")


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

    def generate(self, prompt: str | Sequence[Mapping[str, str]], **sampling: Any) -> str:
        """What the model answers to a plain prompt, or to messages (each with role and content).

        Keywords are those of ``Sampling``: max_new_tokens, temperature, top_p, seed. Greedy by default.
        """
        asked = prompt if isinstance(prompt, str) else [Turn(turn["role"], turn["content"]) for turn in prompt]
        return generate(self.model, self.tokenizer, encode_prompt(asked, self.tokenizer), Sampling(**sampling))

    def held_out(self, data: Path | None = None, limit: int | None = None) -> Measurement:
        """The recipe's held-out rows, or those of ``data``, ready to be measured.

        Raises UsageError where there are none, DataError where the recipe's files have changed since training.
        """
        recipe, task = self.run.recipe, self.collate.task
        if data is None:
            self.run.check_data()
        examples = read_examples(data, "auto", limit, task.name) if data else encode.read(recipe)[1][:limit]
        if not examples:
            raise UsageError(f"{self.run.path}: its recipe holds out no rows", "name some with --data FILE")
        longest = recipe.data.max_length or 0
        rows = encode.encode(examples, task, self.tokenizer, longest, "held-out", recipe.data.learn)
        return Measurement(rows, self.collate, longest, recipe.eval.choices or ())


def open_run(path: Path) -> Run:
    """The run in ``path``. Raises UsageError where there is no finished one."""
    manifest = path / "manifest.json"
    if not manifest.exists():
        if not path.is_dir():
            near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
            raise UsageError(f"{path}: no such run directory", f"did you mean {path.with_name(near)}?" if near else "")
        if (path / "adapter_config.json").exists():
            raise UsageError(f"{path} is an adapter folder, not a run directory", "name the folder above it")
        raise UsageError(f"{path} holds no manifest.json, so no run was finished there")
    try:
        facts = json.loads(manifest.read_text("utf-8"))
    except ValueError:
        raise UsageError(f"{manifest} is not JSON") from None
    if not isinstance(facts, dict) or facts.get("kind") != "run":
        raise UsageError(f"{manifest} is not the manifest of a run")
    return Run(path.absolute(), load_recipe(path / "resolved.yaml", max_bytes=RESOLVED_BYTES), facts)


def load(path: str | Path) -> LoadedRun:
    """The model that a run trained, loaded on the device Accelerate chooses.

    Raises UsageError where there is no finished run, or where its base model is not the one it was trained on.
    """
    from accelerate import Accelerator
    from peft import PeftModel

    run = open_run(Path(path))
    run.check_intact()
    recipe, task = run.recipe, TASKS[run.recipe.task.name]
    base = located.locate(recipe, lambda _: None)
    identity.check(base, run.manifest["base"])
    model = loading.load_model(base, recipe.model, task, recipe.model.dtype)
    model = PeftModel.from_pretrained(model, run.adapter)
    accelerator = Accelerator()
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()
    tokenizer = loading.load_tokenizer(base, recipe.model)
    slices_logits = loading.forward_takes(model.get_base_model(), "logits_to_keep")
    fast = FastPaths(recipe.train.fast, profile(model, task, slices_logits), METHODS[recipe.method.name])
    tokens = recipe.train.micro_batch_tokens or 0
    collate = Collator(task, tokenizer, fast.layout(pad_id(tokenizer)), tokens, accelerator.device)
    return LoadedRun(run, model, tokenizer, collate, fast)
