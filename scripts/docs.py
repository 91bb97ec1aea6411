"""Make what is generated: docs/recipe.md, docs/methods.md, a table in README.md and recipes/recipe.schema.json.

python scripts/docs.py [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from peftctl.formats import FORMATS
from peftctl.methods import METHODS
from peftctl.methods.described import COLUMNS, refused, row
from peftctl.recipe.json_schema import EXTENDS, json_schema
from peftctl.recipe.schema import NEEDED, OUTPUT, SECTIONS, EvalSource, Source
from peftctl.settings import Settings, sections_in
from peftctl.tables import table
from peftctl.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent

BEGIN, END = "<!-- tasks: made by scripts/docs.py from docs/results/tasks.json -->", "<!-- end of tasks -->"
INTRODUCTION = """\
# Recipes

<!-- Made by scripts/docs.py from the declarations that judge recipes. Change those, not this. -->

A recipe is one YAML file. `peftctl check` names the faults of its text at once, with their lines, and
`peftctl check --model` tries its method on the model's architecture too; `peftctl init` writes a first one;
`peftctl schema` prints the JSON Schema, and a first line
`# yaml-language-server: $schema=recipe.schema.json` lets an editor complete and check while you type.

- What a recipe reads (a model folder, a data file, the recipe it `extends`) is looked up beside the recipe. What it
  writes (`output`) lands where peftctl is run.
- A value comes from, each over the one before: the default, the recipe it `extends`, the recipe, `--set key=value`.
  The run's `resolved.yaml` says for every value which it was.
- `${env:NAME}` is the value of an environment variable; one that is not set is a fault.
- `1e-5` is a number. A repeated key is a fault, and so is a setting that has no effect where it stands.
- Where a section may be one word, the word is the setting marked with *.
"""


METHODS_INTRODUCTION = """\
# Methods

<!-- Made by scripts/docs.py from the methods themselves and from peftctl/tables. Change those, not this. -->

What each method was seen to do with peft {peft} and transformers {transformers}: `scripts/tables.py` builds every cell
on a tiny random model, trains it, saves it, reads it back and compares, and generates. `check` and `train` refuse what
is *no* here, with the reason; `scripts/proofs matrix` tries all of it again with other seeds and sizes. What is trained
is float32 whatever the base is. QLoRA, `method: qlora`, is `lora` with `model.quantization`
([recipe](../recipes/methods/qlora.yaml)), and other methods take that where *4 bit* says yes.

| family | stands for |
|---|---|
| `llama` | grouped keys, no biases |
| `qwen2` | biases on queries, keys and values |
| `qwen3` | norms on queries and keys |
| `gemma2` | tied embeddings, soft caps |
| `gemma3_text` | tied embeddings, local attention |
| `qwen3_moe` | experts in one parameter |
| `gpt2` | transposed layers (Conv1D), learned positions, tied embeddings |

The tasks but `causal_lm` and `seq2seq_lm` were tried on BERT, and where that failed on Llama; `seq2seq_lm` on T5.

Where `packing` says no, rows are padded instead, and the result is the same.

"""


def main() -> None:
    made = {
        "docs/recipe.md": recipe_page(),
        "docs/methods.md": methods_page(),
        "README.md": readme(),
        "recipes/recipe.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
    }
    stale = [name for name, text in made.items() if not _same(ROOT / name, text)]
    if "--check" not in sys.argv:
        for name in stale:
            (ROOT / name).write_text(made[name], encoding="utf-8")
    if stale:
        print("stale:" if "--check" in sys.argv else "written:", ", ".join(stale))
    sys.exit(bool(stale) and "--check" in sys.argv)


def readme() -> str:
    """README.md as it stands, with the table of tasks as scripts/proofs tasks last measured them."""
    text = (ROOT / "README.md").read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    measured = json.loads((ROOT / "docs" / "results" / "tasks.json").read_text("utf-8"))
    lines = [
        "| task | measured by | strongest simpler way | that | peftctl | trained and measured in |",
        "|---|---|---|---:|---:|---:|",
    ]
    for task in TASKS:
        if (found := measured.get(task)) is None:
            continue
        metric, of_rivals = found["decides"]
        figure, theirs = found["metrics"][metric], {name: each[of_rivals] for name, each in found["rivals"].items()}
        best = max(theirs, key=lambda name: theirs[name])
        time = f"{found['seconds'] // 60} min {found['seconds'] % 60} s"
        lines.append(f"| `{task}` | {metric} | {best} | {theirs[best]:.3f} | {figure:.3f} | {time} |")
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}"


def recipe_page() -> str:
    parts = [INTRODUCTION, "## At the top\n", _rows_head()]
    for name in ("extends", *SECTIONS, "output"):
        meaning = {"extends": EXTENDS, "output": OUTPUT}.get(name) or _summary(SECTIONS[name])
        parts.append(f"| `{name}` | {'text' if name in ('extends', 'output') else 'section'} | "
                     f"{'needed' if name in NEEDED else ''} | {meaning} |\n")  # fmt: skip
    for name, settings in SECTIONS.items():
        if name == "method":
            for method in METHODS.values():
                parts += [f"\n## `method: {method.name}`\n\n{_summary(method.settings)}\n\n"]
                parts += _table(method.settings, method.name)
            continue
        parts += [f"\n## `{name}`\n\n{_summary(settings)}\n\n", *_table(settings)]
        for key, inner in sections_in(settings):
            if inner not in (Source, EvalSource):  # which are below
                parts += [f"\n### `{name}.{key}`\n\n{_summary(inner)}\n\n", *_table(inner)]
        if name == "task":
            parts.append(f"\nTasks: {', '.join(f'`{task}`' for task in TASKS)}.\n")
        if name == "data":
            parts += ["\n### `data.train`: one source or a list of them\n\n", *_table(Source)]
            parts += ["\n### `data.eval`\n\n", f"{_summary(EvalSource)}\n\n", *_table(EvalSource)]
            parts += ["\n### Formats\n\n| format | columns |\n|---|---|\n"]
            for fmt in FORMATS.values():
                columns = fmt.columns.replace("|", "\\|")
                parts.append(f"| `{fmt.name}` | `{columns}` |\n")
    return "".join(parts)


def methods_page() -> str:
    """docs/methods.md: each method's formula, paper, settings and what it was seen to work on."""
    seen = table("capabilities")
    parts = [METHODS_INTRODUCTION.format(**{key: seen[key] for key in ("peft", "transformers")})]
    head = ["method", "kind", *COLUMNS]
    parts.append(f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n")
    for name, able in seen["methods"].items():
        parts.append(f"| [`{name}`](#{name}) | {METHODS[name].category} | {' | '.join(row(able))} |\n")
    for name, method in METHODS.items():
        parts.append(f"\n## {name}\n\n{method.words}\n\nDefault learning rate: {method.learning_rate:g}.")
        if (ROOT / "recipes" / "methods" / f"{name}.yaml").exists():
            parts.append(f" Recipe: [recipes/methods/{name}.yaml](../recipes/methods/{name}.yaml).")
        parts.append("\n\n")
        parts += _table(method.settings, name)
        for what, verdict in refused(seen["methods"][name]):
            parts.append(f"\nNot {what}: {verdict}.\n")
    return "".join(parts)


def _rows_head() -> str:
    return "\n| setting | type | default | meaning |\n|---|---|---|---|\n"


def _table(settings: type[Settings], method: str = "") -> Iterator[str]:
    yield _rows_head().lstrip("\n")
    schema = settings.model_json_schema()["properties"]
    for name, setting in settings.model_fields.items():
        star = "*" if name == settings.shorthand else ""
        meaning = setting.description or ("The method." if name == "name" else "")
        yield f"| `{name}`{star} | {_type(schema[name])} | {_default(setting)} | {meaning}{_peft(setting, method)} |\n"


def _peft(setting: FieldInfo, method: str) -> str:
    """The field of PEFT's config that a method's setting becomes, and PEFT's own default."""
    extra = setting.json_schema_extra
    if not isinstance(extra, dict):
        return ""
    field = str(extra["peft"])
    return f" PEFT: `{field}`, default {table('peft_configs')['methods'][method][field]['default']}."


def _type(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"] if each.get("type") != "null"))
    if "$ref" in schema:
        return "source" if schema["$ref"].endswith("Source") else "section"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if schema["type"] == "object":
        return f"mapping of {_type(schema['additionalProperties'])}"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([words[schema["type"]], ", ".join(limits)]).strip()


def _default(setting: FieldInfo) -> str:
    if setting.is_required():
        return "needed"
    default = setting.default
    if default is None:
        return "see there" if "Default:" in (setting.description or "") else ""
    if isinstance(default, Settings):
        return "see there"
    if isinstance(default, tuple):
        return f"`{default[0]}`" if len(default) == 1 else "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _summary(settings: type[Settings]) -> str:
    if settings.__name__ == "MethodSettings":
        return "The fine-tuning method and its own settings."
    return " ".join((settings.__doc__ or "").split())


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


if __name__ == "__main__":
    main()
