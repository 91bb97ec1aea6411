"""A model without weights: every module and shape that its config asks for, on the meta device."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError
from peftctl.model.auto import auto_class
from peftctl.model.load import misnamed
from peftctl.nearest import nearest
from peftctl.tasks import TASKS, Task

# Of a class that guesses words, and whose tokens see all others, though it has no class that fills in masked ones.
SEES_ALL = ("xlnet",)
# For a config that names no class and that no task of peftctl has one for, in the order in which they are tried.
OTHER_CLASSES = ("AutoModelForSeq2SeqLM", "AutoModelForImageTextToText", "AutoModelForMaskedLM", "AutoModel")


@dataclass(frozen=True)
class Blueprint:
    """``model`` on the meta device; ``tasks``: the tasks it can be trained for, each with the class that is built;
    ``trained``: the model of the first of these, where that is of another class.
    """

    model: Any
    tasks: Mapping[str, str]
    trained: Any = None


def build(settings: Mapping[str, Any]) -> Blueprint:
    """The model of a config.json's ``settings``: of the class they name, or else of the first task that has one.

    No code but transformers' own is run. Raises UsageError where transformers has no such model, or cannot build it
    of these settings; ImportError where it needs a package for that, NotImplementedError where torch cannot do on the
    meta device what the model's code asks of it.
    """
    import torch

    config = _config(settings)
    found = {name: _class_for(auto_class(task, config), type(config)) for name, task in TASKS.items()}
    tasks = {name: made for name, made in found.items() if made is not None and _learns(TASKS[name], made, config)}
    make = _maker(config, _declared(settings, config), tasks)
    try:
        with torch.device("meta"):
            model = make()
            first = next(iter(tasks.values()), type(model))
            other = first is not type(model)
            trained = first._from_config(copy.deepcopy(config), attn_implementation="eager") if other else None
    except (MemoryError, ImportError, NotImplementedError):
        raise
    except Exception as error:  # settings of strangers: a model's code ends in whatever it stumbles over
        raise UsageError(f"transformers cannot build a {config.model_type} of this config: {said(error)}") from error
    return Blueprint(model, {name: made.__name__ for name, made in tasks.items()}, trained)


def said(error: BaseException) -> str:
    """What an error says, in a line, or else what it is."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _config(settings: Mapping[str, Any]) -> Any:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    kind = settings["model_type"]
    if kind not in CONFIG_MAPPING_NAMES:
        near = nearest(kind, list(CONFIG_MAPPING_NAMES))
        own = "; it brings its own code (auto_map), which is not run here" if settings.get("auto_map") else ""
        raise UsageError(
            f"model_type: transformers {transformers.__version__} knows no {kind!r}{own}",
            f"did you mean {near}?" if near and not own else "",
        )
    # What it says of code, of kernels and of how its weights are packed is nothing to shapes.
    left_out = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config")
    try:
        return CONFIG_MAPPING[kind].from_dict({key: settings[key] for key in settings if key not in left_out})
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        raise UsageError(f"the config is none that transformers can use for {kind}: {said(error)}") from error


def _class_for(auto: Any, config: type) -> Any:
    """The class that one of transformers' auto classes has for this class of config; None where it has none."""
    found = auto._model_mapping.get(config, None)
    return found[0] if isinstance(found, tuple | list) else found


def _learns(task: Task, made: Any, config: Any) -> bool:
    """Whether the class can learn the task. A causal one needs tokens that do not see those after them: an encoder's
    do, unless its config says otherwise.

    A run tries it on a small copy. Here there are no weights to try it with, and what the class says of itself must do:
    that of a decoder says it as it is built, of a model that is an encoder with a decoder.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    if not task.causal:
        return not misnamed(made, config)
    if _class_for(AutoModelForMaskedLM, type(config)) is None:
        return config.model_type not in SEES_ALL
    try:
        with torch.device("meta"):
            built = made._from_config(copy.deepcopy(config), attn_implementation="eager")
    except MemoryError:
        raise
    except Exception:  # there is none that it could be trained with; building what is declared says why
        return False
    return bool(getattr(built.config, "is_decoder", False) or getattr(built.config, "causal", False))


def _declared(settings: Mapping[str, Any], config: Any) -> Any:
    """The class that the config's ``architectures`` name, where its model's module has it, for this config."""
    names = settings.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z]\w{0,100}", name):
        return None
    home = type(config).__module__.replace(".configuration_", ".modeling_")
    try:
        found = getattr(importlib.import_module(home), name, None)
    except ModuleNotFoundError:  # a config of one model that another's classes are built of
        return None
    return found if getattr(found, "config_class", None) is type(config) else None


def _maker(config: Any, declared: Any, tasks: Mapping[str, Any]) -> Any:
    """What makes the model. A task's own auto class where that gives what is declared, since training asks it too."""
    import transformers

    for name, made in tasks.items():
        if declared in (None, made):
            return lambda: auto_class(TASKS[name], config).from_config(config, attn_implementation="eager")
    if declared is not None:
        return lambda: declared._from_config(config, attn_implementation="eager")
    for name in OTHER_CLASSES:
        auto = getattr(transformers, name)
        if _class_for(auto, type(config)) is not None:
            return lambda: auto.from_config(config, attn_implementation="eager")
    raise UsageError(f"transformers has no model class for a {config.model_type}")
