"""Whether a method goes into an architecture, tried without the weights: PEFT puts it into empty layers."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten
from typing import Any, Literal

from pydantic import ValidationError

from peftctl.errors import MachineError, PeftctlError, UsageError
from peftctl.methods import METHODS, DataFacts, Method, MethodSettings
from peftctl.methods.parts import head_shapes, heads
from peftctl.model import attach, auto, causal, load, skeleton, targets
from peftctl.model.skeleton import Skeleton
from peftctl.tables import table
from peftctl.tasks import TASKS, Task

Said = Literal["attaches", "trains nothing", "cannot attach", "not verified"]
ATTACHES: Said = "attaches"
NOTHING: Said = "trains nothing"
CANNOT: Said = "cannot attach"
UNKNOWN: Said = "not verified"
OF_NO_VALUES = re.compile(r"(?<![a-z])meta(?![a-z])", re.IGNORECASE)  # how torch calls the device of empty tensors
MOST = 3
LONGEST = 200  # characters of a library's message
TEXT = "text"
LENGTH = 3  # tokens
# Of a run as runs are: what a method asks of its data is judged when that is known.
FACTS = DataFacts(rows=1000, tokens=100_000, supervised_tokens=50_000, longest=512, steps=1000)


@dataclass(frozen=True)
class Verdict:
    """What came of putting a method into a model without weights; ``reason`` in a line, where it does not attach.

    ``modules`` are its targets and ``parameters`` what it trains, in the model's full depth; ``error`` is the message
    of ours, where one said so.
    """

    said: Said
    reason: str = ""
    modules: int = 0
    parameters: int = 0
    error: PeftctlError | None = field(default=None, compare=False, repr=False)


def check(
    name: str,
    config: Any,
    task: Task,
    method: Method,
    settings: MethodSettings,
    note: Callable[[str], None],
    *,
    again: bool = False,
) -> None:
    """Try what no table of seen combinations has, before the weights of the model ``name`` are read; ``again``: what
    one has too.

    ``note`` hears what cannot be told without them. Raises UsageError where the method does not go into the model, or
    trains nothing there, with what does; and where the model takes no rows of text alone, or is none for ``task``.
    """
    seen = table("capabilities")["methods"].get(method.name, {"families": {}})
    if task.causal and seen["families"].get(config.model_type) == "yes" and not again:
        return  # the families were tried with it
    if not auto.has_class(task, config):
        able = [each.name for each in TASKS.values() if auto.has_class(each, config)]
        raise UsageError(
            f"model.name: {name} is a {config.model_type}, of which transformers has no class for {task.name}"
            + (f"; allowed: {', '.join(able)}" if able else "")
        )
    words = f"{method.name} on {config.model_type}"
    try:
        empty = skeleton.build(config, task)
    except Exception as error:  # an architecture's code on a stranger's config; loading will say it again
        note(f"{words}: {UNKNOWN} before the weights are loaded: {_line(error)}")
        return
    if reason := _why_not_text(empty.small):
        raise UsageError(
            f"model.name: {name}, a {type(empty.whole).__name__}, takes no rows of text alone: {reason}",
            "name a model of text, or one that takes text without images and sound",
        )
    if misnamed := load.misnamed(type(empty.whole), config):
        raise UsageError(f"model.name: {name} {misnamed}", "name a model of another family, an encoder for one")
    causal.check(name, empty.whole, task, task.causal and causal.kind_looks_ahead(config, task))
    targets.of(empty.whole, method, settings)  # what is wrong with the recipe's own words is said in its own words
    verdict = judge(empty, method, settings, task)
    if verdict.said == UNKNOWN:
        note(f"{words}: {UNKNOWN} before the weights are loaded: {verdict.reason}")
    if verdict.error:
        raise verdict.error
    if verdict.said in (NOTHING, CANNOT):
        what = "trains nothing in" if verdict.said == NOTHING else "cannot go into"
        allowed = " or ".join(_instead(empty, method, settings, task))
        raise UsageError(
            f"method.name: {method.name} {what} {type(empty.whole).__name__}"
            + (f": {verdict.reason}" if verdict.reason else "")
            + (f"; allowed: {allowed}" if allowed else "")
        )


def verdicts(config: Any, task: Task) -> dict[str, Verdict]:
    """For every method, with its default settings, what comes of putting it into the model of ``config``."""
    try:
        empty = skeleton.build(config, task)
    except Exception as error:
        return dict.fromkeys(METHODS, Verdict(UNKNOWN, _line(error)))
    return {name: _by_default(empty, method, task, counted=True) for name, method in METHODS.items()}


def judge(empty: Skeleton, method: Method, settings: MethodSettings, task: Task) -> Verdict:
    """Put the method into the first layers; where the settings do not go with those, into all of them."""
    return _judged(empty, method, settings, task)[0]


def _judged(
    empty: Skeleton, method: Method, settings: MethodSettings, task: Task
) -> tuple[Verdict, Mapping[str, tuple[int, int]]]:
    """The verdict, and the targets in full depth, which take long to find in a deep model."""
    try:
        matched = targets.of(empty.whole, method, settings)
    except Exception as error:
        return _verdict(error), {}
    names = _counterparts(empty.small, matched)
    found = _put(copy.deepcopy(empty.small), method, settings, names, task) if names or not matched else None
    if found is None or found.error:  # settings may name layers that the small one has not
        found = _put(copy.deepcopy(empty.whole), method, settings, list(matched), task)
    return replace(found, modules=len(matched)), matched


def _counted(
    empty: Skeleton,
    method: Method,
    settings: MethodSettings,
    verdict: Verdict,
    matched: Mapping[str, tuple[int, int]],
) -> Verdict:
    """The verdict with what the method trains at the ``matched``, in the model's full depth."""
    if verdict.said not in (ATTACHES, UNKNOWN) or verdict.error:
        return verdict
    whole = attach.anatomy(empty.whole, matched, method.beside(empty.whole, settings))
    kinds: dict[str, list[str]] = {}
    for name in matched:
        kinds.setdefault(_kind(name), []).append(name)
    numbers = {len(names) for names in kinds.values()}
    if len(numbers) != 1 or max(numbers) < 3:
        return replace(verdict, parameters=method.parameters(settings, whole))
    # Each layer more adds as many: some formulas go through all of PEFT, which takes long for some hundred targets.
    few = ({name: matched[name] for names in kinds.values() for name in names[:count]} for count in (1, 2))
    one, two = (method.parameters(settings, replace(whole, targets=each)) for each in few)
    return replace(verdict, parameters=one + (numbers.pop() - 1) * (two - one))


def _put(model: Any, method: Method, settings: MethodSettings, names: Sequence[str], task: Task) -> Verdict:
    """What comes of building the method into ``model``, on the meta device, at ``names``."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not there
            shapes = method.targetable(model) or targets.linear_shapes(model)
            chosen = {name: shapes[name] for name in names}
            anatomy, whole = attach.anatomy(model, chosen, method.beside(model, settings)), head_shapes(model)
            expected = attach.expected(method, settings, anatomy, whole)
            with torch.device("meta"):  # what PEFT makes for the widths of large models takes minutes
                built = method.build(model, settings, names, task.peft_type, FACTS)
                attach.train_heads(built, heads(model))
    except Exception as error:  # the ways in which PEFT refuses are as many as its methods
        return _verdict(error)
    found = attach.trainable(built)
    if not found:
        return Verdict(NOTHING)
    if found != expected:
        return Verdict(CANNOT, f"it would train {found} parameters, where its formula gives {expected}")
    return Verdict(ATTACHES)


def _verdict(error: Exception) -> Verdict:
    """What an error says: one about the meta device says no more than that values were asked for."""
    if OF_NO_VALUES.search(str(error)):
        return Verdict(UNKNOWN, "PEFT computes with values on its way in, and there are none yet")
    said = error if isinstance(error, UsageError | MachineError) else None
    return Verdict(CANNOT, _line(error), error=said)


def _counterparts(model: Any, matched: Mapping[str, Any]) -> list[str]:
    """The modules of ``model`` that differ from the ``matched`` in their numbers alone; none where a kind has none."""
    kinds = {_kind(name) for name in matched}
    found = [name for name, _ in model.named_modules() if _kind(name) in kinds]
    return found if {_kind(name) for name in found} == kinds else []


def _kind(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _why_not_text(model: Any) -> str:
    """Why a model that sees or hears takes no rows of text alone, or ""."""
    import torch

    modalities = getattr(model, "input_modalities", TEXT)
    if modalities in (TEXT, (TEXT,), [TEXT]):
        return ""
    ids = torch.ones((1, LENGTH), dtype=torch.long, device="meta")
    try:
        model.train()(input_ids=ids, use_cache=False)
    except (TypeError, ValueError) as error:  # what it needs, in its own words
        return "" if OF_NO_VALUES.search(str(error)) else _line(error)
    except Exception:  # without weights and a mask not all of it can run
        return ""
    finally:
        model.eval()
    return ""


def _instead(empty: Skeleton, method: Method, settings: MethodSettings, task: Task) -> Iterator[str]:
    """What works in the place of a method that does not, those most used first."""
    if settings != _defaults(method) and _by_default(empty, method, task).said == ATTACHES:
        yield f"{method.name} with its own defaults"
    found = 0
    for other in METHODS.values():
        if found < MOST and other.name != method.name and _by_default(empty, other, task).said == ATTACHES:
            found += 1
            yield f"method {other.name}"


def _by_default(empty: Skeleton, method: Method, task: Task, *, counted: bool = False) -> Verdict:
    settings = _defaults(method)
    if settings is None:
        return Verdict(UNKNOWN, f"it needs settings: {', '.join(method.settings.needed)}")
    verdict, matched = _judged(empty, method, settings, task)
    return _counted(empty, method, settings, verdict, matched) if counted else verdict


def _defaults(method: Method) -> MethodSettings | None:
    """Its settings where a recipe says none; None where it has to say some."""
    if method.settings.needed:
        return None
    try:
        return method.resolve(method.settings.model_validate({"name": method.name}))
    except ValidationError:
        return None


def _line(error: BaseException) -> str:
    return shorten(str(error).split("\nhint:")[0], LONGEST, placeholder=" ...") or type(error).__name__
