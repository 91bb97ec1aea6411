"""Which of transformers' classes builds a task's model."""

from __future__ import annotations

from typing import Any

from peftctl.tasks import Task


def auto_class(task: Task, config: Any) -> Any:
    """The transformers auto class that builds the task's model of ``config``.

    The task's own, where that has a class for it. Else, for a model that sees or hears and is trained on text, the one
    for such models: they are loaded whole, as they will be used, and their text model is trained.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    own = task.model_class(config)
    if _builds(own, config) or own is not AutoModelForCausalLM or config.is_encoder_decoder:
        return own
    return AutoModelForMultimodalLM if type(config) in AutoModelForMultimodalLM._model_mapping else own


def has_class(task: Task, config: Any) -> bool:
    """Whether there is a class that builds the task's model of ``config``."""
    return _builds(auto_class(task, config), config)


def _builds(auto: Any, config: Any) -> bool:
    """Whether the auto class knows a model of ``config``, or that brings its own code for it."""
    return type(config) in auto._model_mapping or auto.__name__ in (getattr(config, "auto_map", None) or {})
