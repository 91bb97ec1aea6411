"""The structure that the design promises, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "peftctl"

# A module imports only what stands above it here, and its own folder.
LAYERS = [
    "errors", "nearest", "sizes", "cache", "crashlog", "events", "atomic", "quiet", "example", "settings",
    "text", "formats", "fast", "objectives", "tasks", "tables", "methods", "recipe", "model", "data", "starter",
    "generate", "evaluation", "inspection", "train", "run", "reproduce", "card", "merge", "gguf", "onnx", "exporters",
    "console", "outcomes", "cli",
]  # fmt: skip
TABLES = ("formats", "objectives", "tasks", "methods", "exporters")
NO_MEMBERS = {
    "__init__", "contract", "export", "turns", "peft_method", "lycoris", "described", "selection", "continued",
    "presets", "experts", "mixture", "start_text", "names", "lora_settings", "lora_places", "lora_plan", "lora_start",
    "generic", "generic_counts", "generic_facts", "generic_limits", "generic_settings", "generic_shapes",
    "generic_special", "prefix_cache", "parts", "defaults", "embeddings", "answers", "labels", "overlong", "padded",
    "ranks", "scores", "texts", "whole", "gguf_whole", "gguf_adapter", "vllm_rules", "vllm_serve", "vllm_compare",
    "push", "as_trained",
}  # fmt: skip
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "safetensors", "huggingface_hub"}
LIGHT = ("cli", "recipe", "methods", "tasks", "formats", "objectives", "errors", "settings", "example", "text", "data")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    at = LAYERS.index(layer(path))
    for name in imports(path):
        top, _, rest = name.partition(".")
        module = rest.split(".")[0]
        if top == "peftctl" and ((PACKAGE / f"{module}.py").exists() or (PACKAGE / module).is_dir()) and module:
            assert LAYERS.index(module) <= at, f"{path.name} imports {name}"


@pytest.mark.parametrize("table", TABLES)
def test_members_of_a_table_do_not_import_each_other(table: str) -> None:
    members = {path.stem for path in (PACKAGE / table).glob("*.py")} - NO_MEMBERS
    for member in members:
        for name in imports(PACKAGE / table / f"{member}.py"):
            parts = name.split(".")
            assert not (parts[:2] == ["peftctl", table] and len(parts) > 2 and parts[2] in members - {member})


def test_the_core_names_no_member() -> None:
    members = {
        path.stem
        for table in ("methods", "formats", "exporters", "objectives")
        for path in (PACKAGE / table).glob("*.py")
    } - NO_MEMBERS
    for path in modules():
        if layer(path) in TABLES:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not named & members, f"{path.name} asks whether something is {named & members}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_light_modules_import_heavy_libraries_inside_functions_only(path: Path) -> None:
    if layer(path) in LIGHT:
        assert not {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY


def test_rich_is_the_consoles_alone_and_no_file_is_long_or_called_utils() -> None:
    for path in modules():
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 400, path
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path
        if layer(path) != "console":
            assert "rich" not in {name.split(".")[0] for name in imports(path)}, path
