"""Rules that hold between settings. They judge the written values, so that one wrong field hides no other fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from peftctl.errors import Fault
from peftctl.recipe import nodes
from peftctl.recipe.nodes import Document

Rule = Callable[[Document], Iterator[Fault]]

UNSCALED = ("sgd", "adafactor")


def faults(document: Document) -> list[Fault]:
    """What breaks a rule between settings."""
    return [fault for rule in RULES for fault in rule(document)]


def _epochs_or_steps(document: Document) -> Iterator[Fault]:
    if _written(document, ("train", "epochs")) and _written(document, ("train", "max_steps")):
        yield _both(document, ("train", "epochs"), ("train", "max_steps"), "both say how long to train")


def _one_eval_source(document: Document) -> Iterator[Fault]:
    held_out = document.at(("data", "eval"))
    if not isinstance(held_out, dict):
        return
    ways = [key for key in ("path", "split", "count") if held_out.get(key) is not None]
    if not ways:
        yield Fault(
            document.place(("data", "eval")),
            "data.eval",
            "says nothing of where held-out rows come from",
            allowed="one of path, split, count",
        )
    for other in ways[1:]:
        yield _both(document, ("data", "eval", ways[0]), ("data", "eval", other), "both say which rows are held out")
    if ways and ways[0] != "path":
        for key, default in (("format", "auto"), ("limit", None), ("sha256", None)):
            if held_out.get(key, default) != default:
                place, also = document.place(("data", "eval", key)), document.place(("data", "eval", ways[0]))
                problem = "has no effect on rows taken from the training rows"
                yield Fault(place, f"data.eval.{key}", problem, also=also)


def _eval_needs_rows(document: Document) -> Iterator[Fault]:
    if document.at(("data", "eval")) is None:
        for key in ("every", "choices"):
            if _written(document, ("eval", key)):
                yield Fault(
                    document.place(("eval", key)), f"eval.{key}", "has no effect without held-out rows: set data.eval"
                )


def _choices_differ(document: Document) -> Iterator[Fault]:
    choices = document.at(("eval", "choices"))
    if isinstance(choices, list) and len({str(choice) for choice in choices}) < len(choices):
        written = [document.written.get(("eval", "choices", index), "") for index in range(len(choices))]
        found = [way if "${" in way else choice for way, choice in zip(written, choices, strict=True)]  # no secrets
        yield Fault(document.place(("eval", "choices")), "eval.choices", "a choice is repeated", str(found))


def _project_needs_a_tracker(document: Document) -> Iterator[Fault]:
    if document.at(("track", "project")) not in (None, "peftctl") and not document.at(("track", "to")):
        place = document.place(("track", "project"))
        yield Fault(place, "track.project", "has no effect without a tracker: set track.to")


def _compile_needs_something(document: Document) -> Iterator[Fault]:
    fast = document.at(("train", "fast"))
    if not isinstance(fast, dict):
        return
    compiled = [key for key in ("norm", "lora") if fast.get(key) is not False]
    if fast.get("compile") is True and not compiled:
        place = document.place(("train", "fast", "compile"))
        yield Fault(place, "train.fast.compile", "has no effect with norm and lora off")


def _offload_needs_checkpointing(document: Document) -> Iterator[Fault]:
    if document.at(("train", "offload_activations")) is True and not document.at(("train", "gradient_checkpointing")):
        place = document.place(("train", "offload_activations"))
        yield Fault(place, "train.offload_activations", "has no effect without gradient_checkpointing: true")


def _trackers_differ(document: Document) -> Iterator[Fault]:
    trackers = document.at(("track", "to"))
    if isinstance(trackers, list) and len({str(name) for name in trackers}) < len(trackers):
        yield Fault(document.place(("track", "to")), "track.to", "a tracker is repeated", str(trackers))


def _rate_of_another_optimizer(document: Document) -> Iterator[Fault]:
    """The methods' default rates are AdamW's: an optimizer that does not scale by its own gradients hardly moves."""
    optimizer = document.at(("train", "optimizer"))
    if optimizer in UNSCALED and not _written(document, ("train", "learning_rate")):
        place, also = document.place(("train",)), document.place(("train", "optimizer"))
        problem = f"is missing: its default is for AdamW, and {optimizer} needs another, larger one"
        yield Fault(place, "train.learning_rate", problem, also=also)


RULES: tuple[Rule, ...] = (
    _epochs_or_steps,
    _one_eval_source,
    _eval_needs_rows,
    _choices_differ,
    _project_needs_a_tracker,
    _compile_needs_something,
    _offload_needs_checkpointing,
    _trackers_differ,
    _rate_of_another_optimizer,
)


def _written(document: Document, path: nodes.Path) -> bool:
    return document.at(path) is not None


def _both(document: Document, path: nodes.Path, other: nodes.Path, problem: str) -> Fault:
    also = document.place(other)
    return Fault(document.place(path), nodes.dotted(path), f"and {nodes.dotted(other)} {problem}", also=also)
