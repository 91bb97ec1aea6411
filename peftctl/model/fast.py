"""The fast paths of a recipe: decided once by the model's profile, put in for training and measuring, taken out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from peftctl.errors import MachineError
from peftctl.methods import Method
from peftctl.model.attention import packed_attention
from peftctl.model.profile import Profile
from peftctl.recipe.schema import FastSettings
from peftctl.tasks import Layout

MULTIPLE = 32  # tokens a packed micro-batch is filled up to a multiple of


# From about so many tokens on compiling, some ten seconds the first time, takes less time than it saves.
COMPILED_TOKENS = 100_000


def compile_pays(device: Any, tokens: int) -> bool:
    """Whether torch.compile saves time on this machine over so many tokens of training."""
    return device.type == "cpu" and tokens >= COMPILED_TOKENS and has_compiler()


def has_compiler() -> bool:
    """Whether torch finds a C++ compiler that runs."""
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except (InvalidCxxCompiler, OSError):
        return False


@dataclass(frozen=True)
class FastPaths:
    """What of ``settings`` this model can have, by its ``profile``."""

    settings: FastSettings
    profile: Profile
    method: Method

    @property
    def packed(self) -> bool:
        return self.settings.packed and self.profile.packs

    def layout(self, plain: Layout) -> Layout:
        """How batches are laid out for a model that these paths are in; ``plain``: without them."""
        return replace(
            plain,
            slices_logits=self.profile.slices_logits,
            packed=self.packed,
            multiple=MULTIPLE,
            head=self.profile.head if self.settings.loss else None,
            virtual=self.profile.virtual,
        )

    @contextmanager
    def on(self, model: Any) -> Iterator[dict[str, Any]]:
        """Within this context the peft model ``model`` computes fast. Yields what was put in, for the log."""
        from peftctl.fast.install import install

        base = model.get_base_model()
        with ExitStack() as undo:
            if self.packed:
                undo.enter_context(packed_attention(base))
            paths = {"norm": self.settings.norm, "lora": self.settings.lora, "packed": self.packed}
            with _compile_errors() if self.settings.compile else nullcontext():
                installed = install(base, self.method.low_rank, **paths, compile=bool(self.settings.compile))
            undo.callback(installed.remove)
            yield {
                "packed": self.packed,
                "not_packed": self.profile.why_not if self.settings.packed else "",
                "loss": self.settings.loss and self.profile.head is not None,
                "replaced": dict(installed.counts),
                "compiled": bool(self.settings.compile),
                "left": sorted(installed.left),
            }


@contextmanager
def _compile_errors() -> Iterator[None]:
    """What torch.compile raises as a MachineError that says how to do without. Its import alone takes a second."""
    from torch._dynamo.exc import TorchDynamoException

    hint = "without it: train.fast.compile: false"
    if not has_compiler():
        raise MachineError("train.fast.compile: needs a C++ compiler, and there is none (g++, or what CXX names)", hint)
    try:
        yield
    except TorchDynamoException as error:
        reason = textwrap.shorten(str(error).split("Set TORCHDYNAMO_VERBOSE")[0], 200, placeholder=" ...")
        raise MachineError(f"train.fast.compile: torch.compile fails here: {reason}", hint) from error
