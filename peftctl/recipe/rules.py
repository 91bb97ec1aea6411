"""Rules that hold between settings. They judge the written values, so that one wrong field hides no other fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peftctl.errors import Fault
from peftctl.formats import FORMATS
from peftctl.methods import METHODS
from peftctl.nearest import nearest
from peftctl.recipe import filters, nodes
from peftctl.recipe.nodes import Document
from peftctl.recipe.schema import DataSettings, QuantizationSettings, RowSettings
from peftctl.recipe.task_settings import TaskSettings
from peftctl.tasks import TASKS

Rule = Callable[[Document], Iterator[Fault]]

UNSCALED = ("sgd", "adafactor")


def faults(document: Document) -> list[Fault]:
    """What breaks a rule between settings."""
    return [fault for rule in RULES for fault in rule(document)]


def _method_has_what_it_needs(document: Document) -> Iterator[Fault]:
    name = document.at(("method", "name"))
    method = METHODS.get(name) if isinstance(name, str) else None
    for key in method.settings.needed if method else ():
        if not _written(document, ("method", key)):
            yield Fault(document.place(("method",)), f"method.{key}", f"is missing, which {name} needs")


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
        for key in RowSettings.model_fields:
            default = RowSettings.model_fields[key].default
            if key != "path" and held_out.get(key, default) != default:
                place, also = document.place(("data", "eval", key)), document.place(("data", "eval", ways[0]))
                problem = "has no effect on rows taken from the training rows"
                yield Fault(place, f"data.eval.{key}", problem, also=also)


def _eval_needs_rows(document: Document) -> Iterator[Fault]:
    if document.at(("data", "eval")) is None:
        for key in ("every", "best", "choices", "generate"):
            if document.at(("eval", key)) not in (None, False):
                yield Fault(
                    document.place(("eval", key)), f"eval.{key}", "has no effect without held-out rows: set data.eval"
                )


def _eval_before_the_end(document: Document) -> Iterator[Fault]:
    every, steps = document.at(("eval", "every")), document.at(("train", "max_steps"))
    if type(every) is int and type(steps) is int and every >= steps > 0:
        problem = f"has no effect in a run of {steps} steps: the end of training is always measured"
        place, also = document.place(("eval", "every")), document.place(("train", "max_steps"))
        yield Fault(place, "eval.every", problem, str(every), also=also)


def _rows_are_numbered(document: Document) -> Iterator[Fault]:
    if document.at(("train", "log_rows")) is True and document.at(("data", "streaming")) is True:
        place, also = document.place(("train", "log_rows")), document.place(("data", "streaming"))
        yield Fault(place, "train.log_rows", "has no effect on streamed rows, which are not numbered", also=also)


def _task_has_what_is_said(document: Document) -> Iterator[Fault]:
    section = document.at(("task",))
    name = section.get("name", "causal_lm") if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(name, str) and name in TASKS:
        for key in section:
            if key in TaskSettings.model_fields and key not in ("name", *TASKS[name].uses) and section[key] is not None:
                yield Fault(document.place(("task", key)), f"task.{key}", f"has no effect on {name}")


def _problem_is_of_the_task(document: Document) -> Iterator[Fault]:
    section = document.at(("task",))
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        return
    task, problem = TASKS.get(section["name"]), section.get("problem")
    every = {each for other in TASKS.values() for each in other.problems}
    if task and task.problems and isinstance(problem, str) and problem in every and problem not in task.problems:
        place, found = document.place(("task", "problem")), f"is none of {task.name}'s"
        yield Fault(place, "task.problem", found, problem, ", ".join(task.problems))


def _overlong_is_of_the_task(document: Document) -> Iterator[Fault]:
    name = document.at(("task", "name")) if isinstance(document.at(("task",)), dict) else document.at(("task",))
    way = document.at(("data", "overlong"))
    task = TASKS.get(name) if isinstance(name, str) else None
    every = {each for other in TASKS.values() for each in other.ways}
    if task and isinstance(way, str) and way in every and way not in task.ways:
        place, allowed = document.place(("data", "overlong")), ", ".join(task.ways)
        yield Fault(place, "data.overlong", f"cannot be done for {task.name}", way, allowed)


def _choices_are_written(document: Document) -> Iterator[Fault]:
    name = document.at(("task", "name")) if isinstance(document.at(("task",)), dict) else document.at(("task",))
    if not isinstance(name, str) or name not in TASKS:
        return
    for key, able, why in (
        ("choices", TASKS[name].causal, "it scores answers of causal_lm"),
        ("generate", TASKS[name].generates, "its model writes no text"),
    ):
        if not able and document.at(("eval", key)) is not None:
            place, also = document.place(("eval", key)), document.place(("task",))
            yield Fault(place, f"eval.{key}", f"has no effect on {name}: {why}", also=also)


# What each kind of problem leaves without an effect.
WITHOUT = {"regression": "labels", "similarity": "temperature"}


def _problem_uses_what_is_said(document: Document) -> Iterator[Fault]:
    section = document.at(("task",))
    problem = section.get("problem") if isinstance(section, dict) else None
    key = WITHOUT.get(problem) if isinstance(problem, str) else None
    if key and section.get(key) is not None:
        yield Fault(document.place(("task", key)), f"task.{key}", f"has no effect with problem: {problem}")


def _labels_differ(document: Document) -> Iterator[Fault]:
    labels = document.at(("task", "labels")) if isinstance(document.at(("task",)), dict) else None
    if isinstance(labels, list) and len({str(label) for label in labels}) < len(labels):
        yield Fault(document.place(("task", "labels")), "task.labels", "a label is repeated", str(labels))


def _best_of_several(document: Document) -> Iterator[Fault]:
    if document.at(("eval", "best")) is True and document.at(("eval", "every")) is None:
        yield Fault(document.place(("eval", "best")), "eval.best", "has no effect without eval.every")


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


def _bits_have_a_type(document: Document) -> Iterator[Fault]:
    found = document.at(("model", "quantization"))
    if not isinstance(found, dict) or found.get("bits") != 8:
        return
    for key in ("type", "double_quant"):
        path: nodes.Path = ("model", "quantization", key)
        if (
            found.get(key, QuantizationSettings.model_fields[key].default)
            != QuantizationSettings.model_fields[key].default
        ):
            yield Fault(document.place(path), nodes.dotted(path), "has no effect on 8 bits")


def _streaming_needs_an_end(document: Document) -> Iterator[Fault]:
    data = document.at(("data",))
    if not isinstance(data, dict) or data.get("streaming") is not True:
        return
    place, also = document.place(("data", "streaming")), document.place(("train",))
    if not _written(document, ("train", "max_steps")):
        problem = "needs train.max_steps: how many rows an epoch has is not known"
        yield Fault(place, "data.streaming", problem, also=also)
    if document.at(("data", "eval", "split")) is not None:
        problem = "is a share of rows that are not counted where data.streaming is on; count or path can be"
        yield Fault(document.place(("data", "eval", "split")), "data.eval.split", problem, also=place)


def _weight_needs_another_source(document: Document) -> Iterator[Fault]:
    train = document.at(("data", "train"))
    if document.at(("data", "streaming")) is not True or not isinstance(train, list) or len(train) != 1:
        return
    if isinstance(train[0], dict) and train[0].get("weight", 1.0) not in (1, None):
        path: nodes.Path = ("data", "train", 0, "weight")
        yield Fault(document.place(path), nodes.dotted(path), "has no effect on the only source of a stream")


def _fraction_needs_dropping(document: Document) -> Iterator[Fault]:
    default = DataSettings.model_fields["max_bad_fraction"].default
    if document.at(("data", "max_bad_fraction")) in (None, default):
        return
    if document.at(("data", "on_bad_row")) != "drop":
        place = document.place(("data", "max_bad_fraction"))
        yield Fault(place, "data.max_bad_fraction", "has no effect without on_bad_row: drop")


def _columns_of_the_format(document: Document) -> Iterator[Fault]:
    """What ``columns`` maps are columns that the format reads."""
    for path, source in _sources(document):
        columns, name = source.get("columns"), source.get("format", "auto")
        if not isinstance(columns, dict) or (name != "auto" and name not in FORMATS):
            continue
        formats = FORMATS.values() if name == "auto" else [FORMATS[name]]
        known = list(dict.fromkeys(column for each in formats for column in each.reads))
        for column in columns:
            if column not in known:
                here: nodes.Path = (*path, "columns", column)
                problem = "is no column that the format reads" if name != "auto" else "is no column that a format reads"
                near = nearest(str(column), known)
                yield Fault(document.place(here), nodes.dotted(here), problem, "", ", ".join(known), near)


def _filters_are_expressions(document: Document) -> Iterator[Fault]:
    for path, source in _sources(document):
        if isinstance(source.get("filter"), str):
            try:
                filters.compiled(source["filter"])
            except ValueError as error:
                here: nodes.Path = (*path, "filter")
                yield Fault(document.place(here), nodes.dotted(here), f"is no Jinja expression: {error}")


def _sources(document: Document) -> Iterator[tuple[nodes.Path, Mapping[str, Any]]]:
    """Every source of rows that is written as one, with its place."""
    train = document.at(("data", "train"))
    places: list[nodes.Path] = [("data", "train", at) for at in range(len(train) if isinstance(train, list) else 0)]
    for path in (*places, ("data", "eval")):
        source = document.at(path)
        if isinstance(source, dict):
            yield path, source


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
    _method_has_what_it_needs,
    _epochs_or_steps,
    _one_eval_source,
    _eval_needs_rows,
    _eval_before_the_end,
    _rows_are_numbered,
    _task_has_what_is_said,
    _problem_is_of_the_task,
    _overlong_is_of_the_task,
    _choices_are_written,
    _problem_uses_what_is_said,
    _labels_differ,
    _best_of_several,
    _choices_differ,
    _project_needs_a_tracker,
    _compile_needs_something,
    _offload_needs_checkpointing,
    _bits_have_a_type,
    _streaming_needs_an_end,
    _weight_needs_another_source,
    _fraction_needs_dropping,
    _columns_of_the_format,
    _filters_are_expressions,
    _trackers_differ,
    _rate_of_another_optimizer,
)


def _written(document: Document, path: nodes.Path) -> bool:
    return document.at(path) is not None


def _both(document: Document, path: nodes.Path, other: nodes.Path, problem: str) -> Fault:
    also = document.place(other)
    return Fault(document.place(path), nodes.dotted(path), f"and {nodes.dotted(other)} {problem}", also=also)
