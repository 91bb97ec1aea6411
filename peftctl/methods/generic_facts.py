"""What is known of each method that PEFT has and we have no class of our own for: its words, and the rate it trains at.

Papers are those that PEFT's docstrings and documentation name. Rates are those of PEFT's method comparison (MetaMathQA,
Llama 3.2 3B, AdamW), unless a comment says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Facts:
    """``targets``: whether it goes into linear layers that a recipe names. ``defaults`` stand where PEFT has none.
    ``refused``: why it cannot be trained here, whatever the settings."""

    summary: str
    paper: str
    category: Literal["addition", "selection", "reparameterisation"]
    learning_rate: float
    targets: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""


_TASK_IDS = "it needs the number of each row's task, which rows here do not have"

FACTS: dict[str, Facts] = {
    "adamss": Facts(
        "AdaMSS: low-rank updates in subspaces of the weight's own singular vectors, the less useful ones dropped.",
        "https://openreview.net/forum?id=8ZdWmpYxT0",
        "reparameterisation",
        1e-4,
    ),
    "adaption_prompt": Facts(
        "LLaMA-Adapter: trained vectors that the upper layers attend to beside the row, let in by a gate.",
        "https://arxiv.org/abs/2303.16199",
        "addition",
        5e-4,
        False,
        {"adapter_len": 10},  # the paper's
    ),
    "beft": Facts(
        "BEFT: a bias on each target alone, added where there is none.",
        "https://arxiv.org/abs/2509.15974",
        "selection",
        1e-4,
    ),
    "boft": Facts(
        "BOFT: the weight is rotated by a product of sparse orthogonal matrices, arranged as butterflies.",
        "https://arxiv.org/abs/2311.06243",
        "reparameterisation",
        1e-4,
    ),
    "c3a": Facts(
        "C3A: the update is made of circulant blocks, multiplied by way of the fast Fourier transform.",
        "https://arxiv.org/abs/2407.19342",
        "reparameterisation",
        0.3,
    ),
    "cartridge": Facts(
        "Cartridges: keys and values that stand before each row's, trained themselves.",
        "https://arxiv.org/abs/2506.06266",
        "addition",
        5e-3,  # that of prefix tuning, which trains the same tensors
        False,
        {"num_virtual_tokens": 20},  # PEFT names none
    ),
    "cpt": Facts(
        "CPT: the embeddings of examples in the prompt are refined, each within a small distance.",
        "https://arxiv.org/abs/2410.17222",
        "addition",
        1e-4,
        False,
        refused="it needs to be told of every token which part of an example it is, which rows here do not say",
    ),
    "deft": Facts(
        "DEFT: a low-rank projection takes a subspace out of the weight, and a low-rank update puts another in.",
        "https://proceedings.neurips.cc/paper_files/paper/2025/hash/93a34a7138bdad95e874018d5f491cc6-Abstract-Conference.html",
        "reparameterisation",
        1e-4,
    ),
    "delora": Facts(
        "DeLoRA: a low-rank update whose direction and strength are trained apart, the strength within a bound.",
        "https://arxiv.org/abs/2503.18225",
        "reparameterisation",
        1e-3,
    ),
    "fourierft": Facts(
        "FourierFT: a few coefficients of the update's Fourier transform, at fixed random places.",
        "https://arxiv.org/abs/2405.03003",
        "reparameterisation",
        1e-4,
    ),
    "frod": Facts(
        "FRoD: a full-rank basis that layers share, with sparse rotations and scales of their own.",
        "https://doi.org/10.1609/aaai.v40i31.39813",
        "reparameterisation",
        1e-3,
    ),
    "glora": Facts(
        "GLoRA: W + W A + B with a bias that is scaled and shifted too, each part low-rank, a vector or a number.",
        "https://arxiv.org/abs/2306.07967",
        "reparameterisation",
        5e-4,
    ),
    "gralora": Facts(
        "GraLoRA: the weight in a grid of blocks, each with a low-rank update of its own.",
        "https://arxiv.org/abs/2505.20355",
        "reparameterisation",
        2e-4,
    ),
    "hira": Facts(
        "HiRA: the weight times a low-rank matrix, number by number, which gives an update of high rank.",
        "https://openreview.net/pdf?id=TwJrTz9cRS",
        "reparameterisation",
        4.5e-3,
    ),
    "hra": Facts(
        "HRA: the weight is rotated by a chain of Householder reflections.",
        "https://arxiv.org/abs/2405.17484",
        "reparameterisation",
        1e-4,
    ),
    "lily": Facts(
        "Lily: low-rank updates whose parts layers share, mixed anew for each token by a router.",
        "https://arxiv.org/abs/2407.09946",
        "reparameterisation",
        1e-4,
        refused="PEFT mixes its parts by the mean over all tokens of a batch, so that what a row gets depends on the "
        "rows and the padding beside it, and on tokens that are yet to come",
    ),
    "miss": Facts(
        "MiSS: one small matrix, spread over the shards of the weight.",
        "https://arxiv.org/abs/2409.15371",
        "reparameterisation",
        1e-4,
    ),
    "multitask_prompt_tuning": Facts(
        "Multitask prompt tuning: a prompt that tasks share, times a low-rank matrix of each task's own.",
        "https://arxiv.org/abs/2303.02861",
        "addition",
        1e-3,  # that of prompt tuning
        False,
        refused=_TASK_IDS,
    ),
    "oft": Facts(
        "OFT: the weight is rotated in blocks by orthogonal matrices, which keeps angles between neurons.",
        "https://arxiv.org/abs/2306.07280",
        "reparameterisation",
        1e-4,
    ),
    "osf": Facts(
        "OSF: the weight's lesser singular vectors are trained, at right angles to the greater ones, which stay.",
        "https://arxiv.org/abs/2504.07097",
        "reparameterisation",
        5e-5,
    ),
    "peanut": Facts(
        "PEANuT: a small network makes the update from the weight itself.",
        "https://arxiv.org/abs/2410.01870",
        "reparameterisation",
        1e-4,
    ),
    "poly": Facts(
        "Polytropon: an inventory of low-rank updates, mixed for each task by a router.",
        "https://arxiv.org/abs/2202.13914",
        "reparameterisation",
        1e-4,
        refused=_TASK_IDS,
    ),
    "psoft": Facts(
        "PSOFT: an orthogonal transformation of the weight's principal subspace, between two scales.",
        "https://openreview.net/forum?id=FSHrinMArK",
        "reparameterisation",
        1e-4,
    ),
    "pvera": Facts(
        "PVeRA: VeRA whose inner vector is drawn at random about a trained mean while training.",
        "https://arxiv.org/abs/2512.07703",
        "reparameterisation",
        3e-3,
    ),
    "randlora": Facts(
        "RandLoRA: a full-rank sum of fixed random low-rank matrices, each with trained scales.",
        "https://arxiv.org/abs/2502.00987",
        "reparameterisation",
        1e-4,
    ),
    "road": Facts(
        "RoAd: a target's outputs are rotated and scaled in pairs.",
        "https://arxiv.org/abs/2409.00119",
        "reparameterisation",
        1e-3,
    ),
    "shadow": Facts(
        "ShadowPEFT: a small network runs beside the model and corrects what goes into every block.",
        "https://arxiv.org/abs/2604.19254",
        "addition",
        1e-3,
        False,
    ),
    "shira": Facts(
        "SHiRA: some of the weight's own numbers, at random places.",
        "https://arxiv.org/abs/2406.13175",
        "selection",
        3e-4,
    ),
    "supertuning": Facts(
        "Super-Tuning: the largest of the weight's own numbers, with a low-rank update beside them if wanted.",
        "https://arxiv.org/abs/2607.09287",
        "selection",
        1e-4,
    ),
    "tinylora": Facts(
        "TinyLoRA: a handful of numbers for each layer, spread by fixed random matrices over its singular vectors.",
        "https://arxiv.org/abs/2602.04118",
        "reparameterisation",
        1e-3,
    ),
    "trainable_tokens": Facts(
        "Trainable tokens: the embeddings of some tokens alone, by their ids.",
        "",
        "selection",
        0.2,
        False,
    ),
    "unilora": Facts(
        "Uni-LoRA: one short vector for the whole model, from which every number of every low-rank update is taken.",
        "https://arxiv.org/abs/2506.00799",
        "reparameterisation",
        2e-3,
    ),
    "vblora": Facts(
        "VB-LoRA: low-rank updates put together from a bank of vectors that all layers share.",
        "https://arxiv.org/abs/2405.15179",
        "reparameterisation",
        5e-4,
    ),
    "vera": Facts(
        "VeRA: random matrices that all layers share, frozen, with two trained vectors for each layer.",
        "https://arxiv.org/abs/2310.11454",
        "reparameterisation",
        1e-3,
    ),
    "waveft": Facts(
        "WaveFT: a few coefficients of the update's wavelet transform, at fixed random places.",
        "https://arxiv.org/abs/2505.12532",
        "reparameterisation",
        1e-4,
    ),
}
