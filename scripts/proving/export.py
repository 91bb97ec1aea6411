"""SmolLM2-135M trained by four kinds of LoRA, exported to GGUF, and loaded in llama.cpp.

    python scripts/proving/export.py

Each run is short: what is measured is how far llama.cpp is from transformers, beside how far the adapter is from its
base. The base is exported the same way for comparison. A type that takes rows in blocks of 256 is measured on a random
model of that width, too: SmolLM2's rows are of 576 numbers, of which llama.cpp's quantiser leaves most in wider types.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

from machine import machine, versions

RESULTS = SCRIPTS.parent / "docs" / "results"
STEPS = 6
METHODS: dict[str, list[str]] = {
    "LoRA": [],
    "rsLoRA": ["method.rslora=true"],
    "rank and alpha patterns": ["method.rank_pattern={q_proj: 8}", "method.alpha_pattern={v_proj: 5.0}"],
    "DoRA": ["method.dora=true"],
}
FORMS = (("gguf", "f32"), ("gguf", "f16"), ("gguf", "q8_0"), ("gguf-lora", "f32"))
MOST_KL, MOST_SHARE = 10, 1e-4  # beside the base's own, and beside the adapter's effect


def main() -> None:
    found: dict[str, Any] = {"runs": {}}
    with tempfile.TemporaryDirectory(prefix="peftctl-export-") as scratch:
        folder = Path(scratch)
        for number, (name, settings) in enumerate(METHODS.items()):
            run = folder / f"run{number}"
            train(run, settings)
            found["runs"][name] = {"effect": effect(run), "forms": exported(run, folder, name)}
            print(json.dumps({name: found["runs"][name]}, indent=1), flush=True)
        found["base"] = of_base(folder / "run0", folder)
        found["width_256"] = {type_: random(folder, type_) for type_ in ("q8_0", "q6_k", "q4_k_m")}
    judge(found)
    report(found)


def peftctl(*arguments: object) -> str:
    command = [sys.executable, "-m", "peftctl.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def train(run: Path, settings: list[str]) -> None:
    short = [
        "train.epochs=null", f"train.max_steps={STEPS}", "train.batch_size=8", "data.train[0].limit=80",
        "data.eval.limit=8", "eval.choices=null",
    ]  # fmt: skip
    said = [part for each in [*short, *settings] for part in ("--set", each)]
    peftctl("train", SCRIPTS.parent / "recipes" / "quickstart.yaml", "--output", run, *said)


def exported(run: Path, folder: Path, name: str) -> dict[str, Any]:
    forms: dict[str, Any] = {}
    for to, type_ in FORMS:
        if to == "gguf-lora" and name == "DoRA":
            continue  # it has no place for magnitudes, which is what it says
        out = folder / "out"
        manifest = json.loads(peftctl("export", run, out, "--to", to, "--type", type_, "--json"))
        figures = manifest["llama_cpp"] | {"bytes": size(out)}
        forms[f"{to} {type_}"] = figures
        subprocess.run(["rm", "-r", str(out)], check=True)
    return forms


def size(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("*.gguf"))


def effect(run: Path) -> float:
    """How far the run's model is from its base in transformers: the mean divergence (KL) on the same positions."""
    import peftctl as package
    from peftctl.gguf import compare
    from peftctl.model.divergence import divergence

    loaded = package.load(run)
    asked = compare.asked(loaded.tokenizer, [], "")
    asked = compare.Asked(asked.rows, [], [], [], ())
    with loaded.base() as base:
        one, _ = compare.said(base, asked)
    two, _ = compare.said(loaded.model, asked)
    return divergence(two, one)


def of_base(run: Path, folder: Path) -> dict[str, Any]:
    """The untouched base, written and compared the same way."""
    from peftctl.run import open_run

    where = Path(open_run(run).recipe.model.name)
    return written(where, folder, "f32")


def random(folder: Path, type_: str) -> dict[str, Any]:
    """A random model whose rows are of 256 numbers."""
    from tests.unit import gguf_models

    made = folder / "wide"
    if not made.exists():
        sizes = {"hidden_size": 256, "intermediate_size": 768, "initializer_range": 0.05}
        gguf_models.save(made, "qwen2", **sizes)
    return written(made, folder, type_)


def written(where: Path, folder: Path, type_: str) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from peftctl.gguf import compare, convert, runtime
    from peftctl.gguf.numbers import TYPES

    tokenizer, config = AutoTokenizer.from_pretrained(where), AutoConfig.from_pretrained(where)
    source = convert.Source(where, config, tokenizer, (tokenizer.eos_token_id,), {"name": "base"})
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    path = scratch / "whole.gguf"
    convert.convert(source, path, "f32", print)
    if TYPES[type_].quantised:
        runtime.quantise(path, scratch / "model.gguf", type_)
        path = scratch / "model.gguf"
    asked = compare.asked(tokenizer, source.ends, convert.check(config, tokenizer).form)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
    return compare.check(compare.File(path, type_, None), tokenizer, asked, lambda: compare.said(model, asked), scratch)


def judge(found: Mapping[str, Any]) -> None:
    """Raises SystemExit where a file of float32 is further from transformers than is explained."""
    wrong = []
    for name, run in found["runs"].items():
        allowed = max(MOST_KL * found["base"]["kl"], MOST_SHARE * run["effect"])
        for form in ("gguf f32", "gguf-lora f32"):
            figures = run["forms"].get(form)
            if figures and not (figures["kl"] <= allowed and figures["top1"] == 1.0 and figures["positions"] == 200):
                wrong.append(f"{name}, {form}: KL {figures['kl']}, allowed {allowed}, the same {figures['top1']}")
    if wrong:
        raise SystemExit("\n".join(wrong))


def report(found: dict[str, Any]) -> None:
    found |= {"machine": machine(), "versions": versions(("torch", "transformers", "peft", "gguf", "llama-cpp-python"))}
    (RESULTS / "export.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    lines = [
        "# GGUF files beside transformers",
        "",
        "SmolLM2-135M-Instruct trained for a few steps by four kinds of LoRA, exported, and loaded in llama.cpp on the "
        "CPU with a cache of float32. The divergence (KL, nats) and the share of positions with the same likeliest "
        "token are those of 200 positions, beside transformers in float32 with the same weights; a text is what is "
        "written after a prompt, 24 tokens, the likeliest each time. Every file's tokens were the tokenizer's on every "
        "text that was tried (scripts, code, emoji, white space, special tokens).",
        "",
        f"The base, exported the same way in float32: KL {found['base']['kl']:.2g}. Allowed of a file in float32 is "
        f"ten times that, or {MOST_SHARE:g} of what the adapter does, and the same likeliest token everywhere.",
        "",
        "`scripts/proofs export` made this.",
        "",
        "| trained by | file | MB | KL | KL of adapter and base | same likeliest | same texts |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, run in found["runs"].items():
        for form, figures in run["forms"].items():
            lines.append(
                f"| {name} | {form} | {figures['bytes'] / 1e6:.0f} | {figures['kl']:.2g} | {run['effect']:.2g} | "
                f"{100 * figures['top1']:.4g} % | {figures['texts_the_same']} of {figures['texts_written']} |"
            )
    lines += ["", "A random Qwen2 of 256 numbers a row, as llama.cpp's quantiser makes it:", ""]
    lines += ["| file | KL | same likeliest |", "|---|---:|---:|"]
    lines += [f"| {type_} | {f['kl']:.2g} | {100 * f['top1']:.4g} % |" for type_, f in found["width_256"].items()]
    lines += ["", f"{found['machine']}; {found['versions']}", ""]
    (RESULTS / "export.md").write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
