"""A model that goes on with a text: one graph for its beginning and for every token after it, by way of its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftctl.model.load import forward_takes
from peftctl.onnx import cache
from peftctl.onnx.contract import BATCH, ROWS, Case, Graph
from peftctl.onnx.session import Sessions
from peftctl.tasks import Task

FILE = "model"
POSITIONS = "position_ids"
# Another word for the sum, which ONNX cannot say of an input: past_sequence_length + sequence_length.
ALL = {0: BATCH, 1: "total_sequence_length"}
KEPT = {0: BATCH, 2: "past_sequence_length"}


class Decoder:
    copies: int = 1

    def graphs(self, model: Any, task: Task, case: Case) -> Sequence[Graph]:
        import torch

        before = case.shape[1] // 3  # no axis is as long as another
        whole = {name: torch.from_numpy(values) for name, values in _inputs(case.ids, case.mask).items()}
        with torch.no_grad():
            past = cache.tensors(_pass(model, {name: values[:, :before] for name, values in whole.items()}, None)[1])
        layers = len(past) // 2
        inputs = {
            "input_ids": whole["input_ids"][:, before:],
            "attention_mask": whole["attention_mask"],
            **({POSITIONS: whole[POSITIONS][:, before:]} if forward_takes(model, POSITIONS) else {}),
        }
        axes = dict.fromkeys(inputs, ROWS) | {"attention_mask": ALL}
        kept = dict(zip(cache.names(cache.PAST, layers), past, strict=True))
        outputs = (*task.results, *cache.names(cache.PRESENT, layers))
        return (Graph(FILE, _step, inputs | kept, axes | dict.fromkeys(kept, KEPT), outputs),)

    def wanted(self, model: Any, task: Task, case: Case) -> Mapping[str, Any]:
        """Of a whole row at once, padded on either side."""
        return {side: _logits(model, ids, mask)[mask.astype(bool)] for side, (ids, mask) in _sides(case).items()}

    def found(self, files: Sessions, case: Case) -> Mapping[str, Any]:
        """Padded on the right, as in training, at once; padded on the left, as in generation, in two passes."""
        import numpy as np

        ids, mask = _sides(case)[RIGHT]
        rows = len(ids)
        start = cache.empty(files.inputs(FILE), rows)
        at_once = files(FILE, {**_inputs(ids, mask), **start})["logits"]
        said = {RIGHT: at_once[mask.astype(bool)]}
        ids, mask = _sides(case)[LEFT]
        inputs, half = _inputs(ids, mask), ids.shape[1] // 2
        if not half:
            return said | {LEFT: files(FILE, {**inputs, **start})["logits"][mask.astype(bool)]}
        first = files(FILE, {**{name: values[:, :half] for name, values in inputs.items()}, **start})
        rest = {name: values[:, half:] for name, values in inputs.items()} | {"attention_mask": mask}
        second = files(FILE, {**rest, **cache.grown(first)})
        both = np.concatenate([first["logits"], second["logits"]], axis=1)
        return said | {LEFT: both[mask.astype(bool)]}

    def by_token(self, files: Sessions) -> Sequence[str]:
        return ()

    def greedy(self, files: Sessions, prompt: Sequence[int], start: int, stops: Sequence[int], most: int) -> list[int]:
        import numpy as np

        past, seen = cache.empty(files.inputs(FILE), 1), 0
        ids, written = list(prompt), [0][:0]
        while len(written) < most and not (written and written[-1] in stops):
            mask = np.ones((1, seen + len(ids)), np.int64)
            inputs = _inputs(np.array([ids]), mask[:, seen:])
            said = files(FILE, {**inputs, "attention_mask": mask, POSITIONS: inputs[POSITIONS] + seen, **past})
            past, seen = cache.grown(said), seen + len(ids)
            ids = [int(said["logits"][0, -1].argmax())]
            written += ids
        return written


RIGHT, LEFT = "logits", "logits through the cache"


def _sides(case: Case) -> dict[str, tuple[Any, Any]]:
    """Ids and mask, padded on the right, and on the left."""
    import numpy as np

    shifts = case.shape[1] - case.mask.sum(1)
    left = [
        np.stack([np.roll(row, shift) for row, shift in zip(values, shifts, strict=True)])
        for values in (case.ids, case.mask)
    ]
    return {RIGHT: (case.ids, case.mask), LEFT: (left[0], left[1])}


def _inputs(ids: Any, mask: Any) -> dict[str, Any]:
    """With the place of every token in its text, by which padding on the left makes no difference."""
    return {"input_ids": ids, "attention_mask": mask, POSITIONS: (mask.cumsum(-1) - 1).clip(0)}


def _pass(model: Any, inputs: Mapping[str, Any], past: Any) -> tuple[Any, Any]:
    given = {name: values for name, values in inputs.items() if name != POSITIONS or forward_takes(model, name)}
    said = model(**given, past_key_values=cache.of(()) if past is None else past, use_cache=True)
    return said.logits, said.past_key_values


def _step(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    past = cache.of([values for name, values in inputs.items() if name.startswith(cache.PAST)])
    rest = {name: values for name, values in inputs.items() if not name.startswith(cache.PAST)}
    logits, kept = _pass(model, rest, past)
    return (logits, *cache.tensors(kept))


def _logits(model: Any, ids: Any, mask: Any) -> Any:
    import torch

    inputs = {name: torch.from_numpy(values) for name, values in _inputs(ids, mask).items()}
    given = {name: values for name, values in inputs.items() if name != POSITIONS or forward_takes(model, name)}
    return model(**given, use_cache=False).logits.numpy()
