"""ONNX files as onnxruntime runs them, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftctl.errors import VerificationError


class Sessions:
    """The .onnx files of a folder, by name without the ending. Raises VerificationError where one cannot be run."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised besides
        options.intra_op_num_threads = torch.get_num_threads()
        self._open = {}
        for name in names:
            path = folder / f"{name}.onnx"
            try:
                self._open[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # its exceptions share no class but this
                raise VerificationError(
                    f"{path.name} cannot be opened by onnxruntime: {_line(error)}; nothing was published"
                ) from error

    def inputs(self, name: str) -> dict[str, tuple[Any, ...]]:
        """Names and shapes of what a file takes; axes of any length are words."""
        return {each.name: tuple(each.shape) for each in self._open[name].get_inputs()}

    def outputs(self, name: str) -> dict[str, tuple[Any, ...]]:
        return {each.name: tuple(each.shape) for each in self._open[name].get_outputs()}

    def __call__(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a file makes of arrays, by name; of those in ``inputs`` it gets what it takes."""
        session, outputs = self._open[name], list(self.outputs(name))
        given = {each: inputs[each] for each in self.inputs(name)}
        try:
            return dict(zip(outputs, session.run(outputs, given), strict=True))
        except Exception as error:  # its exceptions share no class but this
            shape = "×".join(map(str, inputs["input_ids"].shape))
            raise VerificationError(
                f"onnxruntime cannot run {name}.onnx on rows of {shape}: {_line(error)}; nothing was published"
            ) from error


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
