"""What vLLM makes of an exported folder beside what the run's own model makes of the same prompts.

Written by vLLM 0.33.0's documented interface and not run yet: no machine that this was written on has vLLM.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from peftctl.errors import VerificationError
from peftctl.exporters.contract import Job
from peftctl.exporters.vllm_serve import Served
from peftctl.fast.equal import tolerance
from peftctl.run import LoadedRun, load

TEXTS = ("The tide went out before noon, and by evening the boats", "Three times seven is", "1. Wash the rice until")
TOKENS = 8  # that are written after each
ROOM = 64  # for a prompt and what is written


def compare(job: Job, written: Served) -> Mapping[str, Any]:
    """Greedy tokens of vLLM, each held against the run's logits: it has to be the likeliest there, within rounding.

    Raises VerificationError where one is not.
    """
    if job.run.recipe.task.name != "causal_lm":
        return {"verified": "no", "reason": f"{job.run.recipe.task.name} is not compared in vLLM, text alone is"}
    if job.run.recipe.model.quantization is not None and written.options:
        return {"verified": "no", "reason": "vLLM serves the base as it is stored, training saw it quantised"}
    job.note("loading what was written in vLLM")
    version = import_module("vllm").__version__
    prompts = _prompts(job)
    answers = _written(job, written, prompts)
    gc.collect()
    loaded = load(job.run.path, job.base)
    behind = max(_behind(loaded, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
    if behind > 1:
        raise VerificationError(
            f"vLLM {version} writes tokens that are not the likeliest of the run's model: they are behind by "
            f"{behind:.3g} times what rounding explains; nothing was published"
        )
    tokens = sum(map(len, answers))
    return {"verified": "yes", "vllm": version, "tokens": tokens, "behind_of_rounding": behind}


def _prompts(job: Job) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    return [list(tokenizer(text)["input_ids"]) for text in TEXTS]


def _written(job: Job, written: Served, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What vLLM writes after each prompt, as ids."""
    vllm, requests = import_module("vllm"), import_module("vllm.lora.request")
    told = {"model": job.folder, "tokenizer": job.folder, **written.options}
    told |= {name: str(told[name]) for name in ("model", "tokenizer")}
    engine = vllm.LLM(**told, dtype=job.run.recipe.model.dtype, max_model_len=ROOM, enforce_eager=True, seed=0)
    request = requests.LoRARequest(job.run.path.name, 1, str(job.folder)) if written.options else None
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    greedy = vllm.SamplingParams(temperature=0.0, max_tokens=TOKENS)
    made = engine.generate(asked, greedy, lora_request=request)
    return [list(each.outputs[0].token_ids) for each in made]


def _behind(loaded: LoadedRun, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """How far the worst token of ``answer`` is behind the run's likeliest, in units of what rounding explains."""
    import torch

    ids = torch.tensor([[*prompt, *answer]], device=loaded.model.device)
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
    layers = loaded.model.config.get_text_config().num_hidden_layers
    allowed = 2 * layers**0.5 * tolerance(loaded.model.dtype) * float(logits.abs().max())  # two logits, each rounded
    behind: float = (logits.max(1).values - chosen).max().item() / allowed
    return behind
