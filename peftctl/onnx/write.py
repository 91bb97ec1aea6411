"""A graph as a file, by torch.onnx.export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError
from peftctl.onnx.contract import Graph
from peftctl.quiet import quiet_graphs

LONGEST = 200  # letters of another library's message


def write(graph: Graph, model: Any, folder: Path) -> None:
    """Write ``graph`` of ``model`` in ``folder``: NAME.onnx, and its weights in NAME.onnx.data beside, whatever their
    size, so that they go from the model to the disk, and 2 GB, which is the most in an .onnx file, are no limit.

    Raises MachineError where torch cannot make a graph of it.
    """
    import torch

    try:
        with quiet_graphs(), torch.no_grad():
            program = torch.onnx.export(
                _module(graph, model),
                tuple(graph.inputs.values()),
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=(tuple(dict(graph.axes[name]) for name in graph.inputs),),
                dynamo=True,
                verbose=False,
            )
            _strip(program.model)
            program.save(folder / f"{graph.name}.onnx", external_data=True)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MachineError(f"not enough memory to make {graph.name}.onnx") from error
    except OSError as error:
        raise MachineError(f"{graph.name}.onnx cannot be written: {error.strerror or error}") from error
    except Exception as error:  # what a model does that cannot be traced can raise anything
        raise MachineError(
            f"torch.onnx.export makes no graph of a {model.config.model_type} model ({type(model).__name__}): "
            f"{_why(error)}"
        ) from error


def _module(graph: Graph, model: Any) -> Any:
    import torch

    class Forward(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
        """The model with the graph's inputs, in order, as its own."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            named: Mapping[str, Any] = dict(zip(graph.inputs, values, strict=True))
            return graph.compute(self.model, named)

    return Forward().eval()


def _strip(model: Any) -> None:
    """Leave out where in Python, with the paths of this machine, each node comes from: more than the graph itself."""
    for graph in model.graphs():
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _why(error: BaseException) -> str:
    """What went wrong first, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__
