"""What ``peftctl train --reproduce`` shows."""

from __future__ import annotations

from peftctl.console import say
from peftctl.reproduce import Reproduction

MOST = 10


def show(found: Reproduction) -> None:
    """The comparison on standard output."""
    if found.same:
        say(f"the same bits: {found.tensors} tensors and the loss of every logged step agree")
    else:
        say(f"not the same: {len(found.differing)} of {found.tensors} tensors differ")
    if found.step is not None:
        say(f"losses differ from step {found.step} on, of {found.steps}")
    elif not found.same:
        say("every logged loss agrees")
    largest = sorted(found.differing.items(), key=lambda item: -(item[1] if item[1] is not None else float("inf")))
    for name, most in largest[:MOST]:
        say(f"  {name}: " + ("in one of them alone, or of another shape" if most is None else f"by {most:.3g} at most"))
    if len(largest) > MOST:
        say(f"  and {len(largest) - MOST} more")
    for each in found.versions:
        say(f"changed: {each}")
