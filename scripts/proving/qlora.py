"""QLoRA beside LoRA on SmolLM2-135M: bytes of the base, gradients around an evaluation, and loss after 100 steps.

python scripts/proving/qlora.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from machine import machine, versions

from peftctl.events import Events
from peftctl.methods import DataFacts
from peftctl.model import attach, load, targets
from peftctl.model.gguf import plain_folder
from peftctl.model.locate import Base
from peftctl.quiet import quiet_libraries
from peftctl.recipe import load as load_recipe
from peftctl.recipe.schema import ModelSettings, QuantizationSettings
from peftctl.tasks import TASKS
from peftctl.train import job

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
STEPS, BATCH, LONGEST = 100, 4, 96
LINEAR, WHOLE, LOSS = 0.27, 0.45, 0.05  # what is allowed


def main() -> None:
    quiet_libraries()
    found: dict[str, Any] = {"machine": machine(), "versions": versions(("torch", "peft", "bitsandbytes"))}
    found |= sizes()
    found["gradients_equal"] = gradients_equal()
    found["losses"] = {name: trained(name) for name in ("lora", "qlora")}
    report(found)


def quantised() -> Any:
    folder = plain_folder(MODEL, print)
    settings = ModelSettings(name=str(folder), quantization=QuantizationSettings())
    return load.load_model(Base(str(folder), folder, "folder"), settings, TASKS["causal_lm"], "bfloat16")


def sizes() -> dict[str, Any]:
    """Bytes of the quantised linear layers and of the whole base, as shares of what bfloat16 takes."""
    from bitsandbytes.nn import Linear4bit

    model = quantised()
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    state = [tensor for layer in layers for tensor in layer.weight.quant_state.as_dict(packed=True).values()]
    linear = sum(layer.weight.nbytes for layer in layers) + sum(tensor.nbytes for tensor in state)
    in_bfloat16 = sum(2 * layer.in_features * layer.out_features for layer in layers)
    packed = {id(layer.weight) for layer in layers}
    rest = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in packed)
    return {
        "linear_layers": len(layers),
        "linear_share": linear / in_bfloat16,
        "whole_share": (linear + rest) / (in_bfloat16 + rest),
    }


def gradients_equal() -> bool:
    """Whether the gradients of a batch are the same bits before and after an evaluation."""
    from peftctl.methods import METHODS

    base, method = quantised(), METHODS["lora"]
    settings = method.resolve(method.settings(rank=8))
    anatomy = attach.anatomy(base, targets.resolve(base, ["all-linear"]))
    torch.manual_seed(0)
    model = attach.attach(base, method, settings, anatomy, "CAUSAL_LM", DataFacts(8, 64, 32, 12, STEPS))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    ids = torch.randint(0, 49152, (2, 32))

    def gradients() -> list[Any]:
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        taken = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
        model.zero_grad()
        return taken

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    return all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True)) and any(g.any() for g in before)


def trained(method: str) -> dict[str, Any]:
    """The same run with and without quantisation: its first loss, the mean of the last ten, and the held-out one."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "model": {"name": str(MODEL), "dtype": load.choose_dtype("auto")},
            "data": {
                "train": str(ROOT / "recipes" / "data" / "numpy-train.jsonl.gz"),
                "eval": {"path": str(ROOT / "recipes" / "data" / "numpy-eval.jsonl.gz"), "limit": 100},
                "max_length": LONGEST,
                "overlong": "truncate_end",
            },
            "method": {"name": method, "rank": 16},
            "train": {"max_steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-3},
            "output": f"{folder}/run",
        }
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        began = time.time()
        heard: list[Any] = []
        run = job.train(load_recipe(path), path.read_text(), Events(lambda event: heard.append(dict(event))))
        losses = [event["loss"] for event in heard if event["event"] == "step"]
        manifest = json.loads((run / "manifest.json").read_text())
    return {
        "first": losses[0],
        "last_ten": sum(losses[-10:]) / 10,
        "held_out": manifest["metrics"]["loss"],
        "minutes": (time.time() - began) / 60,
    }


def report(found: dict[str, Any]) -> None:
    lora, qlora = found["losses"]["lora"], found["losses"]["qlora"]
    further = {key: qlora[key] / lora[key] - 1 for key in ("last_ten", "held_out")}
    same = "the same bits" if found["gradients_equal"] else "DIFFER"
    passed = (
        found["linear_share"] <= LINEAR
        and found["whole_share"] <= WHOLE
        and found["gradients_equal"]
        and max(further.values()) <= LOSS
    )
    text = f"""\
# QLoRA beside LoRA

`scripts/proofs qlora`. {found["machine"]}. {found["versions"]}.

SmolLM2-135M-Instruct, its linear layers in 4-bit NormalFloat with double quantisation; rank 16 on every
linear layer, {STEPS} steps of {BATCH} rows of NumPy's docstrings, cut at {LONGEST} tokens, products in
{load.choose_dtype("auto")}, the faster here.

| | found | allowed |
|---|---|---|
| the {found["linear_layers"]} linear layers, of their bytes in bfloat16 | {found["linear_share"]:.3f} | {LINEAR} |
| the whole base, of its bytes in bfloat16 | {found["whole_share"]:.3f} | {WHOLE} |
| gradients before and after an evaluation | {same} | the same bits |
| held-out loss, beside LoRA's | {further["held_out"]:+.1%} | {LOSS:+.0%} |
| mean loss of the last ten steps, beside LoRA's | {further["last_ten"]:+.1%} | {LOSS:+.0%} |

| | first loss | mean of the last ten | held out | minutes |
|---|---|---|---|---|
| LoRA | {lora["first"]:.3f} | {lora["last_ten"]:.3f} | {lora["held_out"]:.3f} | {lora["minutes"]:.1f} |
| QLoRA | {qlora["first"]:.3f} | {qlora["last_ten"]:.3f} | {qlora["held_out"]:.3f} | {qlora["minutes"]:.1f} |

{"Passed" if passed else "FAILED"}.
"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "qlora.md").write_text(text, encoding="utf-8")
    (RESULTS / "qlora.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
