"""Merging into models of 1, 3 and 8 billion parameters: the memory it takes, and the time beside copying the files.

Checkpoints of Llama 3's shapes, bfloat16, of random numbers none of which is zero, and a LoRA adapter of rank 16 on
every linear layer. Each merge is a process of its own, whose peak above what its imports take is what counts; the
copy is made by cp and synced, before and after. PEFT's own merge beside it where the model fits in memory three times.

    python scripts/proving/merge.py [NAME ...]      default: all
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
sys.path[:0] = [str(SCRIPTS)]

from fetch_model import MODEL
from machine import machine, versions

RESULTS = SCRIPTS.parent / "docs" / "results"
RANK = 16
SIZES: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "tie_word_embeddings": True},
    "1B, 32 layers": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 32,
                      "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "tie_word_embeddings": False},
}  # fmt: skip
BESIDE_PEFT = ("1B", "3B")
VOCABULARY = 128_256
SHARD = 5_000_000_000


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"ours": ours, "peft": by_peft}[sys.argv[2]](*map(Path, sys.argv[3:]))))
        return
    found = {}
    for name in sys.argv[1:] or list(SIZES):
        with tempfile.TemporaryDirectory(prefix="peftctl-merge-proof-") as scratch:
            found[name] = measured(name, Path(scratch))
        print(name, json.dumps(found[name]), flush=True)
    if not sys.argv[1:]:
        report(found)


def measured(name: str, scratch: Path) -> dict[str, Any]:
    base, adapter = scratch / "base", scratch / "adapter"
    make(base, adapter, SIZES[name])
    weights = sorted(base.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in weights)
    largest = 2 * SIZES[name]["hidden_size"] * SIZES[name]["intermediate_size"]
    copies = [copied(weights, scratch / "copy")]
    merged = child("ours", base, adapter, scratch / "out")
    shutil.rmtree(scratch / "out")
    copies.append(copied(weights, scratch / "copy"))
    found = {
        "bytes": size,
        "largest_changed": largest,
        **merged,
        "copy_seconds": sum(copies) / len(copies),
        "times_the_largest": merged["peak"] / largest,
        "times_copying": merged["seconds_writing"] / (sum(copies) / len(copies)),
    }
    if name in BESIDE_PEFT:
        found["peft"] = child("peft", base, adapter, scratch / "peft")
    return found


def child(who: str, *paths: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", who, *map(str, paths)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(said.stderr[-3000:])
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


def make(base: Path, adapter: Path, sizes: dict[str, Any]) -> None:
    """The checkpoint, tensor by tensor, and the adapter."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from peftctl.merge.shards import Shards, Wanted, raw
    from peftctl.model.gguf import plain_folder

    base.mkdir()
    adapter.mkdir()
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=8192, dtype="bfloat16",
                         architectures=["LlamaForCausalLM"], **sizes)  # fmt: skip
    config.save_pretrained(base)
    AutoTokenizer.from_pretrained(plain_folder(MODEL, lambda _: None)).save_pretrained(base)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    with Shards(base, {name: Wanted("bfloat16", shape) for name, shape in shapes.items()}, SHARD) as shards:
        for number, (name, shape) in enumerate(shapes.items()):
            value = torch.empty(shape, dtype=torch.float32)
            value.normal_(1.0 if len(shape) == 1 else 0.0, 0.02, generator=torch.Generator().manual_seed(number))
            shards.write(name, raw(torch.where(value == 0, 0.01, value).to(torch.bfloat16)))
        shards.finish()
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, shape[1]) / shape[1] ** 0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(shape[0], RANK) / 50
    save_file(tensors, adapter / "adapter_model.safetensors")
    targets = sorted({key.split(".")[-3] for key in tensors})
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    fields |= {"target_modules": targets, "base_model_name_or_path": str(base), "inference_mode": True}
    (adapter / "adapter_config.json").write_text(json.dumps(fields), "utf-8")


def copied(files: list[Path], to: Path) -> float:
    """Seconds in which cp copies the files and the disk has them."""
    to.mkdir()
    began = time.monotonic()
    subprocess.run(["cp", "--reflink=never", *map(str, files), str(to)], check=True)
    subprocess.run(["sync", *(str(path) for path in to.iterdir())], check=True)
    seconds = time.monotonic() - began
    shutil.rmtree(to)
    return seconds


def ours(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    from peftctl.merge import check, merge, stream
    from peftctl.merge.source import open_source
    from peftctl.model import load
    from peftctl.quiet import quiet_libraries

    quiet_libraries()
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import peft.tuners  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    source = open_source(adapter, base, lambda _: None)
    load.load_tokenizer(source.base, source.model)
    floor = memory("VmRSS")
    peaks = {}
    for module, name in ((stream, "write"), (check, "tensors"), (check, "layers")):
        setattr(module, name, peak_of(getattr(module, name), name, peaks))
    facts = merge.merge(source, out, merge.Options(shard_bytes=SHARD))
    return {
        "floor": floor,
        "peak": peaks["write"] - floor,
        "peak_checking": max(peaks["tensors"], peaks["layers"]) - floor,
        "seconds_writing": facts["how"]["seconds_writing"],
        "seconds_checking": facts["how"]["seconds_checking"],
        "compared": facts["checked"]["compared"],
        "worst_layer": facts["checked"]["worst_difference"],
    }


def peak_of(function: Any, name: str, peaks: dict[str, int]) -> Any:
    """``function``, whose peak memory goes into ``peaks``; files are on the disk when it ends, as a copy's are."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        result = function(*args, **kwargs)
        peaks[name] = memory("VmHWM")
        if name == "write":
            subprocess.run(["sync", *map(str, args[2].glob("*.safetensors"))], check=True)
        return result

    return watched


def by_peft(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    floor = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out, max_shard_size=SHARD)
    subprocess.run(["sync", *map(str, out.glob("*.safetensors"))], check=True)
    return {"peak": memory("VmHWM") - floor, "seconds": time.monotonic() - began}


def memory(what: str) -> int:
    """Bytes of this process, by the kernel's word for them."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def rows(found: dict[str, Any]) -> Iterator[str]:
    for name, facts in found.items():
        peft = facts.get("peft")
        beside = f"{peft['peak'] / 1e6:,.0f} MB, {peft['seconds']:.0f} s" if peft else "-"
        yield (
            f"| {name} | {facts['bytes'] / 1e9:.2f} GB | {facts['peak'] / 1e6:,.0f} MB | "
            f"{facts['times_the_largest']:.2f} | {facts['peak_checking'] / 1e6:,.0f} MB | "
            f"{facts['seconds_writing']:.1f} s | {facts['copy_seconds']:.1f} s | {facts['times_copying']:.2f} | "
            f"{facts['seconds_checking']:.0f} s | {beside} |"
        )


def report(found: dict[str, Any]) -> None:
    text = f"""\
# Merging in bounded memory

`scripts/proofs merge`. {machine()}. {versions()}.

Llama 3's shapes in bfloat16, random numbers, a LoRA adapter of rank {RANK} on every linear layer. Memory is the peak
above what the process takes once everything is imported; beside it the same as a multiple of the largest tensor that
changes. Writing is until the files are on the disk, as copying is (`cp` and `sync`, once before and once after);
checking is apart: every tensor against the base's, every layer against base and adapter, on a model that fits whole
the logits too, and hashes of base and result.

| model | weights | peak | times the largest | peak of checks | writing | copying | times copying | checking | PEFT |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows(found))}

PEFT: `merge_and_unload` and `save_pretrained`, where the model fits.
"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "merge.md").write_text(text, encoding="utf-8")
    result = {"machine": machine(), "versions": versions(), "found": found}
    (RESULTS / "merge.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
