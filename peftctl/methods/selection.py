"""What methods have in common that train some of the model's own parameters, and add none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftctl.atomic import write_json
from peftctl.errors import UsageError
from peftctl.methods import continued
from peftctl.methods.contract import Anatomy, BaseName, DataFacts
from peftctl.methods.defaults import Defaults
from peftctl.methods.parts import head_shapes, left_alone, outside

CONFIG = "peftctl_adapter.json"
WEIGHTS = "trained.safetensors"


def _selected(model: Any, names: Sequence[str], untrained: Mapping[str, Any]) -> Any:  # noqa: C901 - a small class
    """``model`` with the parameters ``names`` selected; see ``Selection.build`` and ``load``."""
    from torch import nn

    class Selected(nn.Module):  # type: ignore[misc]  # torch is untyped here
        """A model some of whose own parameters are trained: what PEFT's model is to the methods that PEFT has."""

        def __init__(self) -> None:
            super().__init__()
            self.base_model = model
            self.selected = tuple(names)
            self._untrained = dict(untrained)  # by name; empty while training, which needs none

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("base_model"), name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.base_model(*args, **kwargs)

        def get_base_model(self) -> Any:
            return self.base_model

        def trained(self) -> dict[str, Any]:
            """The selected parameters by name."""
            parameters = dict(self.base_model.named_parameters())
            return {name: parameters[name] for name in self.selected}

        def merge_and_unload(self) -> Any:
            """The model itself, whose parameters these are."""
            return self.base_model

        @contextmanager
        def disable_adapter(self) -> Iterator[None]:
            """Within this context the model is the untrained one."""
            parameters = self.trained()
            assert self._untrained.keys() == parameters.keys(), "untrained values are kept by ``load`` alone"
            trained = {name: parameter.data for name, parameter in parameters.items()}
            try:
                for name, parameter in parameters.items():
                    parameter.data = self._untrained[name].to(parameter.device)
                yield
            finally:
                for name, parameter in parameters.items():
                    parameter.data = trained[name]

    return Selected()


@dataclass(frozen=True)
class Selection(Defaults):
    """A method that selects parameters of the model. ``selects`` is each method's own."""

    category: Literal["addition", "selection", "reparameterisation"] = "selection"

    def selects(self, model: Any, settings: Any) -> Sequence[str]:
        """The names of the parameters that are trained. Raises UsageError where the model has none."""
        raise NotImplementedError

    def reached(self, model: Any, settings: Any) -> list[str]:
        """Those of what it selects that rows of text go through. Raises UsageError where there are none."""
        parts = left_alone(model)
        names = list(dict.fromkeys([*outside(self.selects(model, settings), parts), *head_shapes(model)]))
        if not names:
            raise UsageError(
                f"method: {self.name} has nothing to train in {type(model).__name__} but in {' and '.join(parts)}, "
                "which rows of text never go through"
            )
        return names

    def loads_with(self, settings: Any) -> Literal["peft", "peftctl", "transformers"]:
        return "peftctl"

    def choose(self, model: Any) -> Sequence[str]:
        return ()

    def beside(self, model: Any, settings: Any) -> Mapping[str, tuple[int, ...]]:
        parameters = dict(model.named_parameters())
        return {name: tuple(parameters[name].shape) for name in self.reached(model, settings)}

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        selected = _selected(model, self.reached(model, settings), {})
        for parameter in selected.trained().values():
            if not parameter.is_floating_point():
                raise UsageError(f"method: {self.name} cannot train weights that are quantised")
            parameter.requires_grad_(True)
        return selected

    def trains_own_layers(self, settings: Any) -> bool:
        return True

    def parameters(self, settings: Any, anatomy: Anatomy) -> int:
        return sum(math.prod(shape) for shape in anatomy.beside.values())

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        """The selected parameters under their names in the model, and what they belong to."""
        from safetensors.torch import save_file

        save_file({name: value.detach().contiguous() for name, value in model.trained().items()}, folder / WEIGHTS)
        write_json(folder / CONFIG, {"method": self.name, "base": base.name, "revision": base.commit})

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        return put(model, _read(folder))

    def start_from(self, model: Any, settings: Any, folder: Path) -> None:
        there = continued.read_config(folder / CONFIG).get("method")
        if there != self.name:
            raise UsageError(f"{continued.SETTING}: {folder} is {there}, which {self.name} cannot go on from")
        fill(model, _read(folder), folder)


def put(model: Any, trained: Mapping[str, Any]) -> Any:
    """``model`` with trained values in place of its own, which are kept aside."""
    parameters = dict(model.named_parameters())
    untrained = {name: parameters[name].data.to(value.dtype) for name, value in trained.items()}
    for name, value in trained.items():
        parameters[name].data = value.to(parameters[name].device)
    return _selected(model, list(trained), untrained)


def fill(model: Any, values: Mapping[str, Any], folder: Path) -> None:
    """Give what ``model`` trains the ``values`` read from ``folder``. Raises UsageError where they do not fit."""
    trained = model.trained()
    continued.check_tensors(values, trained, folder)
    for name, parameter in trained.items():
        parameter.data.copy_(values[name])


def _read(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / WEIGHTS)
    return tensors
