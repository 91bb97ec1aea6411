"""What stands beside the graphs: all that the next program takes to put texts in and make sense of what comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from peftctl.atomic import write_json
from peftctl.merge import vectors
from peftctl.merge.files import LARGEST, WEIGHT_FILES
from peftctl.onnx.cache import PAST, PRESENT
from peftctl.onnx.contract import Graph
from peftctl.onnx.usage import notes

OWN = ("config.json", "README.md", "manifest.json", "source.json", *vectors.FILES)


def beside(model: Path, folder: Path) -> None:
    """Config, generation config, tokenizer and chat template of the model in the folder ``model``."""
    for path in sorted(model.iterdir()):
        if path.is_file() and path.stat().st_size <= LARGEST and not any(map(path.match, (*OWN, *WEIGHT_FILES))):
            shutil.copyfile(path, folder / path.name)
    said = json.loads((model / "config.json").read_text("utf-8"))
    if "torch_dtype" in said:
        del said["torch_dtype"]
    write_json(folder / "config.json", said | {"dtype": "float32"})


def words(title: str, graphs: Sequence[Graph], labels: Sequence[str], code: str) -> str:
    """What a card says of the files: what goes in and what comes out, whose last axis stands for ``labels`` if any, and
    Python, ``code``, that runs them."""
    lines = [
        f"# {title}",
        "",
        "The base with what was trained merged into it, as ONNX graphs in float32. Their weights are in the files that "
        "end in .onnx.data, which have to lie beside them. manifest.json says how far what onnxruntime computes is "
        "from torch.",
        "",
    ]
    for graph in graphs:
        lines += _graph(graph)
    if labels:
        named = ", ".join(f"{number} {label}" for number, label in enumerate(labels))
        lines += [f"Along the last axis of what comes out stand the labels (id2label in config.json): {named}.", ""]
    lines += _past(graphs)
    lines += ["## In Python", "", "`pip install onnxruntime transformers`, and in this folder:", ""]
    return "\n".join([*lines, "```python", code, "```", ""])


def _graph(graph: Graph) -> list[str]:
    rows = [
        f"| {name} | {str(example.dtype).removeprefix('torch.')} | {_axes(graph, name)} |"
        for name, example in graph.inputs.items()
        if _first_layer(name)
    ]
    comes = "Comes out: " + ", ".join(filter(_first_layer, graph.outputs)) + "."
    told = [f"- {note}" for note in notes(graph)]
    return [f"## {graph.name}.onnx", "", "| goes in | dtype | axes |", "|---|---|---|", *rows, "", comes, "", *told, ""]


def _past(graphs: Sequence[Graph]) -> list[str]:
    """How what one pass leaves goes into the next; nothing where there is one alone."""
    makes = {graph.name for graph in graphs if any(name.startswith(PRESENT) for name in graph.outputs)}
    takes = {graph.name for graph in graphs if any(name.startswith(PAST) for name in graph.inputs)}
    if not takes:
        return []
    first = ", ".join(f"{name}.onnx" for name in sorted(makes - takes))
    return [
        "Of every layer 0, 1, ... the same: what comes out as present.N goes in as past_key_values.N with the next "
        f"token. {f'{first} is for the first token.' if first else 'With the first tokens the past has length 0.'}",
        "",
    ]


def _axes(graph: Graph, name: str) -> str:
    shape, words = graph.inputs[name].shape, graph.axes[name]
    return ", ".join(str(words.get(at, length)) for at, length in enumerate(shape))


def _first_layer(name: str) -> bool:
    """Whether a tensor stands for itself, or is the first of those that every layer has."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return not numbers or numbers[0] == "0"
