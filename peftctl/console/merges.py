"""What ``peftctl merge`` shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftctl.console import figure, say, visible
from peftctl.sizes import size


def show(out: Path, manifest: Mapping[str, Any]) -> None:
    """What was written, and how it was compared with base and adapter."""
    how, found = manifest["how"], manifest["checked"]
    say(f"{visible(str(out))}: {size(how['bytes'])} of weights in {how['dtype']}, merged {how['way']}")
    if "changed" in found:
        lost = f", {len(found['lost_in_rounding'])} lost in rounding" if found["lost_in_rounding"] else ""
        say(f"tensors: {found['changed']} changed{lost}, {found['same']} as they were")
    if found.get("layers"):
        say(
            f"layers:  {found['layers']} compute what base and adapter do, to {found['worst_difference']:.2g} "
            f"(allowed: {found['tolerance_of_layers']:.2g})"
        )
    if found["compared"] == "logits":
        line = f"logits:  as base and adapter to {found['relative_difference']:.2g}"
        line += f" (allowed: {found['tolerance']:.2g})" if found["judged"] else ""
        if "kl" in found:
            line += f", KL {figure(found['kl'])}, the likeliest is the same at {100 * found['top1']:.4g} % of positions"
        say(line)
        if "loss_merged" in found:
            say(f"held out: loss {found['loss_merged']:.4f}, of base and adapter {found['loss_of_adapter']:.4f}")
