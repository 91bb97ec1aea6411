"""Methods that PEFT has and peftctl has no class of its own for, by PEFT's names and with PEFT's settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peftctl.errors import MachineError, UsageError
from peftctl.methods import generic_counts, generic_shapes, generic_special
from peftctl.methods.contract import Anatomy, BaseName, DataFacts, MethodSettings
from peftctl.methods.generic_facts import FACTS
from peftctl.methods.generic_limits import BY_TARGET, EITHER
from peftctl.methods.generic_settings import settings_of
from peftctl.methods.names import numbers
from peftctl.methods.peft_method import PeftMethod, own_fields, transposed
from peftctl.tables import table

REMADE = "remade.safetensors"


class Generic(PeftMethod):
    """A method as PEFT's config class, its defaults and its layers make it."""

    def __init__(self, name: str) -> None:
        facts = FACTS[name]
        for field, value in {
            "name": name,
            "peft_type": name.upper(),
            "category": facts.category,
            "learning_rate": facts.learning_rate,
        }.items():
            object.__setattr__(self, field, value)

    @property
    def settings(self) -> type[MethodSettings]:
        """Made when first asked for: most recipes are of other methods."""
        return settings_of(self.name)

    @property
    def paths(self) -> tuple[str, ...]:
        return ()

    @property
    def words(self) -> str:
        """What it is, in a sentence, and its paper."""
        facts = FACTS[self.name]
        return "\n\n".join(filter(None, [facts.summary, facts.paper, "Its settings are PEFT's, by PEFT's names."]))

    @property
    def after_update(self) -> Callable[[Any, int], None] | None:
        return generic_special.AFTER_UPDATE.get(self.name)

    def state(self, model: Any) -> Mapping[str, Any]:
        return generic_special.STATE[self.name][0](model) if self.name in generic_special.STATE else {}

    def restore(self, model: Any, state: Mapping[str, Any]) -> None:
        if self.name in generic_special.STATE:
            generic_special.STATE[self.name][1](model, state)

    def resolve(self, settings: Any) -> MethodSettings:
        if self.name in EITHER:
            one, other = EITHER[self.name]
            if getattr(settings, other):
                settings = settings.model_copy(update={one: 0})
        resolved: MethodSettings = settings
        return resolved

    def choose(self, model: Any) -> Sequence[str]:
        return ()

    def narrow(
        self, model: Any, settings: Any, matched: Mapping[str, tuple[int, int]]
    ) -> Mapping[str, tuple[int, int]]:
        self._refuse()
        generic_shapes.check(self.name, settings, matched)
        return matched

    def beside(self, model: Any, settings: Any) -> Mapping[str, tuple[int, ...]]:
        beside = generic_special.BESIDE.get(self.name)
        return beside(model, settings) if beside else {}

    def config(self, model: Any, settings: Any, targets: Sequence[str], facts: DataFacts) -> Mapping[str, Any]:
        fields = self._fields(settings, targets)
        declared = table("peft_configs")["methods"][self.name]
        if "fan_in_fan_out" in declared:
            fields["fan_in_fan_out"] = transposed(model, targets)
        if "progressbar" in declared:
            fields["progressbar"] = False
        if "adapter_layers" in fields and fields["adapter_layers"] is None:
            fields["adapter_layers"] = model.config.get_text_config().num_hidden_layers
        return fields

    def _fields(self, settings: Any, targets: Sequence[str]) -> dict[str, Any]:
        """Settings as PEFT takes them: lists for tuples, and full names for what is said by target."""
        fields = own_fields(settings)
        for name, value in fields.items():
            if isinstance(value, tuple):
                fields[name] = list(value)
            elif (self.name, name) in BY_TARGET:
                said = numbers(f"method.{name}", value, targets)
                fields[name] = {target: _whole(number) for target, number in said.items()}
            elif name == "effective_rank":
                fields[name] = _whole(value)
        return fields

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        self._refuse()
        self._prepare()
        if self.name in generic_special.JUDGED:
            generic_special.JUDGED[self.name](model, settings, targets, facts)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", generic_special.KNOWN)
                peft_model = super().build(model, settings, targets, peft_type, facts)
        except ImportError as error:
            raise MachineError(f"method: {self.name} needs a package that is not installed: {error}") from error
        except NotImplementedError as error:
            if next(model.parameters()).device.type == "meta":
                raise NotImplementedError(f"it starts from weights, and a meta tensor has none: {error}") from error
            raise
        self._mend(peft_model)
        return peft_model

    def _prepare(self) -> None:
        if self.name in generic_special.BEFORE:
            generic_special.BEFORE[self.name]()

    def _mend(self, peft_model: Any) -> None:
        if self.name in generic_special.BUILT:
            generic_special.BUILT[self.name](peft_model)

    def trains_own_layers(self, settings: Any) -> bool:
        return self.name in generic_special.MIXED

    def needs_base(self, settings: Any, folder: Path) -> str:
        return generic_special.NEEDS_BASE.get(self.name, "")

    def loads_with(self, settings: Any) -> Literal["peft", "peftctl", "transformers"]:
        """Plain PEFT makes again what is saved beside, and on another machine perhaps otherwise."""
        return "peftctl" if self.name in generic_special.REMADE else "peft"

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        super().save(model, settings, base, folder)
        if self.name in generic_special.REMADE:
            from safetensors.torch import save_file

            remade = generic_special.REMADE[self.name](model)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in remade.items()}, folder / REMADE)

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        self._prepare()
        if self.name in generic_special.BARE:
            generic_special.BARE[self.name](model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", generic_special.KNOWN)
            peft_model = super().load(model, settings, folder)
        self._mend(peft_model)
        self._put_back(peft_model, folder / REMADE)
        return peft_model

    def start_from(self, model: Any, settings: Any, folder: Path) -> None:
        super().start_from(model, settings, folder)
        self._put_back(model, folder / REMADE)

    def _put_back(self, peft_model: Any, path: Path) -> None:
        """What was saved beside PEFT's tensors, where there is any: an adapter may be of another tool's."""
        if self.name in generic_special.REMADE and path.exists():
            from safetensors.torch import load_file

            saved = load_file(path)
            for name, tensor in generic_special.REMADE[self.name](peft_model).items():
                tensor.data.copy_(saved[name])

    def _refuse(self) -> None:
        if refused := FACTS[self.name].refused:
            raise UsageError(f"method: {self.name} cannot be trained: {refused}")

    def parameters(self, settings: Any, anatomy: Anatomy) -> int:
        if self.name in generic_counts.COUNTS:
            return generic_counts.COUNTS[self.name](settings, anatomy)
        return generic_counts.by_peft(self.peft_type, self._fields(settings, list(anatomy.targets)), anatomy)

    def rounds(self, settings: Any) -> bool:
        return bool(getattr(settings, "save_only_topk_weights", False))

    def leaves_out(self, settings: Any) -> bool:
        return bool(getattr(settings, "module_dropout", 0.0))

    def positions(self, settings: Any) -> int:
        count: int = settings.num_virtual_tokens if self.name == "cartridge" else 0
        return count


def _whole(number: Any) -> Any:
    """PEFT takes 8 for a number of singular vectors, and 8.0 for a share."""
    return int(number) if number is not None and number >= 1 and number == int(number) else number


GENERIC: dict[str, Generic] = {name: Generic(name) for name in FACTS}
