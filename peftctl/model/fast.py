"""The fast paths of a recipe: decided once by the model's profile, put in for training and measuring, taken out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from peftctl.methods import Method
from peftctl.model.attention import packed_attention
from peftctl.model.profile import Profile
from peftctl.recipe.schema import FastSettings
from peftctl.tasks import Layout

MULTIPLE = 32  # tokens a packed micro-batch is filled up to a multiple of


@dataclass(frozen=True)
class FastPaths:
    """What of ``settings`` this model can have, by its ``profile``."""

    settings: FastSettings
    profile: Profile
    method: Method

    @property
    def packed(self) -> bool:
        return self.settings.packed and self.profile.packs

    def layout(self, pad_id: int) -> Layout:
        """How batches are laid out for a model that these paths are in."""
        head = self.profile.head if self.settings.loss else None
        return Layout(pad_id, self.profile.slices_logits, self.packed, MULTIPLE, head)

    @contextmanager
    def on(self, model: Any) -> Iterator[dict[str, Any]]:
        """Within this context the peft model ``model`` computes fast. Yields what was put in, for the log."""
        from peftctl.fast.install import install

        base = model.get_base_model()
        with ExitStack() as undo:
            if self.packed:
                undo.enter_context(packed_attention(base))
            installed = install(
                base,
                self.method.low_rank,
                norm=self.settings.norm,
                lora=self.settings.lora,
                packed=self.packed,
                compile=self.settings.compile,
            )
            undo.callback(installed.remove)
            yield {
                "packed": self.packed,
                "not_packed": self.profile.why_not if self.settings.packed else "",
                "loss": self.settings.loss and self.profile.head is not None,
                "replaced": dict(installed.counts),
                "left": sorted(installed.left),
            }
