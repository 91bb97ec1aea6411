"""What vLLM serves and what it refuses, as a table to look up before weights are read.

Read in vLLM 0.33.0: ``vllm/lora/peft_helper.py`` (features), ``vllm/config/lora.py`` (ranks), ``lora_model.py`` and
``utils.py`` of ``vllm/lora`` (tensors), ``vllm/lora/layers/logits_processor.py`` (vocabulary), ``SupportsLoRA`` and
``embedding_modules`` of its models, and ``vllm/model_executor/models/registry.py`` (classes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERSION = "0.33.0"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be
RANK = 16  # what it is unsaid
LARGEST_VOCABULARY = 258_048  # with adapters
STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # of init_lora_weights, those that leave the base alone
# Its versions before 0.33.0 may give every target one rank and alpha, whatever these fields of PEFT say.
PATTERNS = ("rank_pattern", "alpha_pattern")
# Tasks with a model in vLLM; the head of one that is not for text is the base's own there, which it lacks untrained.
MERGED_TASKS = ("causal_lm", "seq_cls", "token_cls", "feature_extraction")
ADAPTER_TASKS = ("causal_lm",)

# Fields of adapter_config.json that are refused where they say anything, by what vLLM calls them.
REFUSED = {
    "modules_to_save": "modules that were trained whole (modules_to_save)",
    "use_dora": "DoRA",
    "lora_bias": "a trained bias (lora_bias)",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layers that stand in several places (layer_replication)",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "rows of the embedding trained for themselves (trainable_tokens)",
    # It takes them of some mixtures only, with flags of their own.
    "target_parameters": "adapters on experts' weights (target_parameters)",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Its own classes that take no adapters.
NO_ADAPTERS = _names(
    """
    AriaForConditionalGeneration BeamForCausalLM BloomForCausalLM Cohere2MoeForCausalLM
    Cohere2VisionForConditionalGeneration Cosmos3EdgeForConditionalGeneration DbrxForCausalLM DeepseekV4ForCausalLM
    DiffusionGemmaForBlockDiffusion Dots3NoteForCausalLM FalconForCausalLM FalconMambaForCausalLM FlintForCausalLM
    GPT2LMHeadModel GPTJForCausalLM Gemma3nForCausalLM Gemma3nForConditionalGeneration GlmMoeDsaForCausalLM
    HrmTextForCausalLM KimiLinearForCausalLM LlavaOnevisionForConditionalGeneration Mamba2ForCausalLM
    MambaForCausalLM MiMoV2FlashForCausalLM MiniMaxM3SparseForConditionalGeneration
    MossTranscribeDiarizeForConditionalGeneration PaddleOCRVLForConditionalGeneration
    Qwen2AudioForConditionalGeneration StableLmForCausalLM Step3p7ForConditionalGeneration Zamba2ForCausalLM
    """
)
# Those that take adapters on embeddings and head, beside linear layers.
EMBEDDINGS = _names(
    """
    ApertusForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM ExaoneMoeForCausalLM FalconH1ForCausalLM
    GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM
    GraniteMoeSharedForCausalLM GraniteSWAForCausalLM HyperCLOVAXForCausalLM JambaForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Llama4ForCausalLM LlamaForCausalLM MiniCPM3ForCausalLM MixtralForCausalLM
    MuseSparkForConditionalGeneration NemotronForCausalLM NemotronHForCausalLM Phi3ForCausalLM Qwen3ForCausalLM
    Qwen3MoeForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM
    """
)
# Classes it has of its own, where its backend for transformers' classes could not run those.
OWN = frozenset(("BloomForCausalLM", "FalconForCausalLM", "GPTJForCausalLM"))
TOKEN_CLASSIFIERS = frozenset(
    f"{family}ForTokenClassification"
    for family in ("Bert", "ModernBert", "OpenAIPrivacyFilter", "Roberta", "XLMRoberta")
)
# Classes it once had, with the last version that did.
ENDED = {
    "AyaVisionForConditionalGeneration": "0.24.0", "BambaForCausalLM": "0.23.0",
    "ChameleonForConditionalGeneration": "0.28.0", "Dots1ForCausalLM": "0.23.0",
    "ErnieForSequenceClassification": "0.23.0", "ErnieForTokenClassification": "0.23.0", "ErnieModel": "0.23.0",
    "FuyuForCausalLM": "0.25.0", "MiniMaxForCausalLM": "0.23.0", "MllamaForConditionalGeneration": "0.10.2",
    "MptForCausalLM": "0.28.0", "MusicFlamingoForConditionalGeneration": "0.24.0", "PersimmonForCausalLM": "0.25.0",
    "Phi4MultimodalForCausalLM": "0.12.0",
}  # fmt: skip

PAIR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:[AB]\.weight|embedding_[AB])")
TABLES = ("embed_tokens", "lm_head")
TOWERS = re.compile(r"vision|visual|audio|image|tower|projector")


@dataclass(frozen=True)
class Adapter:
    """What a folder says of an adapter before its weights are read: ``config`` is adapter_config.json, ``shapes`` those
    of its tensors by name."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        """The largest rank of any target."""
        return max(int(rank) for rank in (self.config["r"], *(self.config.get("rank_pattern") or {}).values()))

    @property
    def patterned(self) -> bool:
        return any(self.config.get(field) for field in PATTERNS)

    @property
    def modules(self) -> set[str]:
        return {found["module"] for name in self.shapes if (found := PAIR.fullmatch(name))}


def max_lora_rank(rank: int) -> int | None:
    """The least ``--max-lora-rank`` that takes it, None where none does."""
    return next((each for each in RANKS if each >= rank), None)


def refused(adapter: Adapter) -> Iterator[str]:
    """What vLLM refuses of an adapter, or would leave out, whatever model it is on; nothing where it takes it."""
    config = adapter.config
    if config.get("peft_type") != "LORA":
        yield f"the method {config.get('peft_type')}; allowed: LORA"
        return
    yield from (words for field, words in REFUSED.items() if config.get(field))
    if config.get("bias", "none") != "none":
        yield f"biases of the base (bias: {config['bias']}); allowed: none"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in STARTS:
        yield f"a start that changes the base's own weights (init_lora_weights: {start})"
    if max_lora_rank(adapter.rank) is None:
        yield f"the rank {adapter.rank}; allowed: up to {RANKS[-1]}"
    if towers := sorted(name for name in adapter.modules if TOWERS.search(name)):
        yield f"adapters outside of the language model ({towers[0]})"
    if odd := sorted(name for name in adapter.shapes if not PAIR.fullmatch(name)):
        yield f"tensors that are no A and no B of a LoRA ({odd[0]})"


def refused_on(adapter: Adapter, architecture: str, vocabulary: int) -> Iterator[str]:
    """What it refuses of an adapter on a model of the class ``architecture`` with so many rows in its embedding."""
    if architecture in NO_ADAPTERS:
        yield f"any adapter on {architecture}, its class for which takes none"
    if vocabulary > LARGEST_VOCABULARY:
        yield f"any adapter where the vocabulary is so large ({vocabulary:,}); allowed: up to {LARGEST_VOCABULARY:,}"
    tables = sorted({name.rsplit(".", 1)[-1] for name in adapter.modules} & {*TABLES})
    if tables and architecture not in EMBEDDINGS:
        yield f"an adapter on {tables[0]} of {architecture}, of which it takes linear layers alone"
    for name, shape in adapter.shapes.items():
        if name.endswith("lora_embedding_A") and shape[1] != vocabulary:
            yield f"an embedding of {shape[1]:,} tokens on a base of {vocabulary:,}: added tokens"


def unserved(architecture: str, task: str) -> str:
    """Why vLLM serves no model of this class for the task, or "" where it does, or is not known not to."""
    if task not in MERGED_TASKS:
        return f"it has no models for {task}; allowed: {', '.join(MERGED_TASKS)}"
    if last := ENDED.get(architecture):
        return f"it has no {architecture} since {last}, its last version that had"
    if task == "token_cls" and architecture not in TOKEN_CLASSIFIERS:
        return f"of token classifiers it has {', '.join(sorted(TOKEN_CLASSIFIERS))}, and no {architecture}"
    if task == "feature_extraction" and not architecture.endswith(("Model", "ForCausalLM", "ForTextEncoding")):
        return f"it makes no vectors with {architecture}"
    decoder = architecture.replace("ForSequenceClassification", "ForCausalLM")
    if decoder in OWN or _by_transformers(architecture):
        return ""
    return f"it has no {architecture}, and its Transformers backend cannot run that of transformers"


def _by_transformers(architecture: str) -> bool:
    """Whether its backend runs transformers' class; a class that transformers lacks may be anything."""
    import transformers

    known = getattr(transformers, architecture, None)
    return known is None or known.is_backend_compatible() or known._can_set_attn_implementation()
