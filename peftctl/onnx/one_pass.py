"""A model that reads rows once and says something of each, or of each token: encoders, classifiers, taggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftctl.onnx.contract import BATCH, LENGTH, ROWS, Case, Graph
from peftctl.onnx.session import Sessions
from peftctl.tasks import Task

FILE = "model"


class OnePass:
    copies: int = 1

    def graphs(self, model: Any, task: Task, case: Case) -> Sequence[Graph]:
        import torch

        inputs = {name: torch.from_numpy(values) for name, values in case.inputs.items()}
        model.config.use_cache = False  # of a decoder that is asked for no text
        return (Graph(FILE, task.result, inputs, dict.fromkeys(inputs, ROWS), task.results),)

    def wanted(self, model: Any, task: Task, case: Case) -> Mapping[str, Any]:
        import torch

        inputs = {name: torch.from_numpy(values) for name, values in case.inputs.items()}
        return {name: said.numpy() for name, said in zip(task.results, task.result(model, inputs), strict=True)}

    def found(self, files: Sessions, case: Case) -> Mapping[str, Any]:
        return files(FILE, case.inputs)

    def by_token(self, files: Sessions) -> Sequence[str]:
        return [name for name, shape in files.outputs(FILE).items() if shape[:2] == (BATCH, LENGTH)]

    def greedy(self, files: Sessions, prompt: Sequence[int], start: int, stops: Sequence[int], most: int) -> list[int]:
        raise AssertionError("it writes nothing")
