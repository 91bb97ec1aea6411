"""What ``peftctl inspect`` shows of an adapter, a run or a checkpoint. All names in it may be a stranger's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.markup import escape

from peftctl.console import RARE, clock, figure, figures, say, table, visible
from peftctl.inspection.able import Able
from peftctl.inspection.adapter import AdapterFacts
from peftctl.inspection.checkpoints import CheckpointFacts
from peftctl.inspection.keys import some
from peftctl.inspection.own import OwnFacts
from peftctl.inspection.runs import RunFacts
from peftctl.inspection.steps import StepFacts
from peftctl.inspection.update import Module
from peftctl.model.targets import summary
from peftctl.sizes import size

LONGEST_WORD = 120
MOST_PROBLEMS = 20

OURS = "peftctl"  # the layout whose files are hashed


def show(facts: AdapterFacts | OwnFacts | RunFacts | CheckpointFacts | StepFacts) -> None:
    """The facts on standard output."""
    if isinstance(facts, StepFacts):
        _step(facts)
    elif isinstance(facts, AdapterFacts):
        _adapter(facts)
    elif isinstance(facts, OwnFacts):
        _own(facts)
    elif isinstance(facts, RunFacts):
        _run(facts)
    else:
        _checkpoint(facts)


def _step(facts: StepFacts) -> None:
    said = f", loss {figure(facts.loss)}" if facts.loss is not None else ""
    said += f", gradient norm {figure(facts.grad_norm)}" if facts.grad_norm is not None else ""
    _head(facts.path, f"step {facts.step:,} of {facts.steps:,}{said}; {len(facts.rows)} rows")
    if not facts.made:
        say("this step is not made yet")
    elif not any(row["loss"] is not None for row in facts.rows):
        say("their losses were not logged: train.log_rows has that done")
    # The row with the largest loss first: it is what one looks for.
    for row in sorted(facts.rows, key=lambda row: -(row["loss"] if row["loss"] is not None else 0.0)):
        loss = f"  loss {figure(row['loss'])}" if row["loss"] is not None else ""
        say(f"  {visible(row['file'])}:{row['line']}{loss}")


def _adapter(facts: AdapterFacts) -> None:
    _head(facts.path, _what(facts.as_dict()))
    _say("base", _base(facts.base_name, facts.base_revision, facts.quantization))
    if facts.run:
        _say("run", _word(facts.run))
    if len(facts.alphas) > 1:
        _say("alpha", ", ".join(f"{alpha:g} in {count:,}" for alpha, count in list(facts.alphas.items())[:8]))
    if facts.layers:
        _say("layers", _ranges(facts.layers))
    if facts.saved:
        _say("whole", ", ".join(f"{_word(name)} ({count:,})" for name, count in list(facts.saved.items())[:4]))
    if facts.fit:
        _say("fits", _fits(facts))
    if any(module.name for module in facts.modules):
        say()
        _modules(facts.modules)
        say()
    else:
        for name, norm in ((name, norm) for module in facts.modules for name, norm in module.tensors.items()):
            _say(name, f"norm {figure(norm)}")
    _say("merges", _able(facts.merges))
    for form, able in facts.exports.items():
        _say(f"exports as {form}", _able(able))
    _problems(facts.as_dict()["problems"])


def _own(facts: OwnFacts) -> None:
    _head(facts.path, f"{_word(facts.method)}, no adapter of PEFT's; {_weights(facts.as_dict())}")
    _say("base", _base(facts.base_name, facts.base_revision))
    _say("run", f"{_word(facts.run)}: name this to see how it was trained" if facts.run else "in none")


def _weights(facts: Mapping[str, Any]) -> str:
    """What files of weights hold, from their facts as plain values."""
    kinds = f" in {'/'.join(facts['dtypes'])}" if facts["dtypes"] else ""
    files = [f"{_word(name)} {count:,}" for name, count in facts["parts"].items()]
    return f"{facts['parameters']:,} parameters{kinds}, {size(facts['size_bytes'])} ({some(files, 6)})"


def _what(facts: Mapping[str, Any]) -> str:
    """An adapter in a line, from its facts as plain values."""
    said = [_word(facts["method"] or facts["peft_type"])]
    said += [f"rank {facts['rank']}"] if facts["rank"] is not None else []
    said += [f"alpha {facts['alpha']:g}"] if facts["alpha"] is not None else []
    said += [facts["blocks"]] if facts["blocks"] else []
    said += [f"{facts['virtual_tokens']} virtual tokens"] if facts["virtual_tokens"] is not None else []
    said += [name.removeprefix("use_") for name in facts["variants"]]
    said += [f"for {_word(facts['task_type'])}"] if facts["task_type"] else []
    kinds = f" in {'/'.join(facts['dtypes'])}" if facts["dtypes"] else ""
    return f"{', '.join(said)}; {facts['parameters']:,} parameters{kinds}, {size(facts['size_bytes'])}"


def _base(name: str | None, revision: str | None, quantization: Mapping[str, Any] | None = None) -> str:
    said = (_word(name) if name else "not said") + (f" at {_word(revision)}" if revision else "")
    return said + (f", quantised in training to {_quantised(quantization)}" if quantization else "")


def _quantised(settings: Mapping[str, Any]) -> str:
    """How a base was quantised, by the recipe's own words."""
    others = [f"{_word(name)} {_word(str(value))}" for name, value in list(settings.items())[:4] if name != "bits"]
    return f"{_word(str(settings.get('bits')))} bits" + (f" ({', '.join(others)})" if others else "")


def _fits(facts: AdapterFacts) -> str:
    fit = facts.fit
    assert fit is not None
    unchecked = f" ({fit.unchecked:,} modules unchecked: no shape to compare)" if fit.unchecked else ""
    known = "yes" if fit.fits else "no" if fit.fits is False else "cannot be told"
    why = f": {'; '.join(_word(each) for each in fit.misfits[:5])}" if fit.misfits else ""
    return f"{known}, {_word(fit.base)}{unchecked}{why}"


def _modules(modules: Sequence[Module]) -> None:
    """A row for each name, layer numbers left out: how many there are, and what their updates come to."""
    named: dict[str, list[Module]] = {}
    for module in modules:
        (short,) = summary([module.name]) or ("",)
        named.setdefault(short, []).append(module)
    low_rank = any(module.norm is not None for module in modules)
    rows = []
    for short, each in named.items():
        row = [escape(_word(short)), f"{len(each):,}", f"{sum(module.parameters for module in each):,}"]
        if low_rank:
            row += [_span([module.rank for module in each], "{:g}")]
            row += [_middle([module.norm for module in each]), _span([module.norm for module in each])]
            row += [
                _middle([module.effective_rank for module in each]),
                _span([module.effective_rank for module in each]),
            ]
        else:
            row += [_parts(each)]
        rows.append(row)
    measured = ["rank", "norm", "from - to", "effective rank", "from - to"] if low_rank else ["median norms"]
    table(["target", "modules", "parameters", *measured], rows)


def _parts(modules: Sequence[Module]) -> str:
    """The median norm of each part."""
    names = list(dict.fromkeys(name for module in modules for name in module.tensors))
    return escape(
        ", ".join(f"{_word(name)} {_middle([module.tensors.get(name) for module in modules])}" for name in names[:6])
    )


def _middle(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.3g}" if known else "-"


def _span(values: Iterable[float | None], form: str = "{:.3g}") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low} - {high}"


def _ranges(numbers: Sequence[int]) -> str:
    """0-15, 17, and so on."""
    said: list[list[int]] = []
    for number in numbers:
        if said and number == said[-1][1] + 1:
            said[-1][1] = number
        else:
            said.append([number, number])
    more = f" and {len(said) - 20:,} more" if len(said) > 20 else ""
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in said[:20]) + more


def _able(found: Able) -> str:
    known = "yes" if found.able else "no" if found.able is False else "not known"
    return known + (f": {_word(found.reason)}" if found.reason else "")


def _problems(problems: Sequence[Mapping[str, str]]) -> None:
    for problem in problems[:MOST_PROBLEMS]:
        say(f"{problem['level']}: {visible(problem['message'])}")


def _run(facts: RunFacts) -> None:
    _head(facts.path, _progress(facts))
    if facts.method:
        settings = ", ".join(f"{_word(name)} {_word(str(value))}" for name, value in facts.settings.items() if value)
        _say("method", _word(facts.method) + (f" ({settings})" if settings else ""))
    _say("base", _base(facts.base_source or facts.base_name, facts.base_commit, facts.quantization))
    for side, counts in facts.data.items():
        _say(side, _rows(counts))
    if facts.loss is not None:
        first = facts.losses.get("first")
        _say("loss", f"{figure(facts.loss)}" + (f", at first {figure(first)}" if first is not None else ""))
    for said in figures(facts.metrics):
        _say("measured", _word(said))
    if facts.skipped_updates:
        _say("skipped", f"{facts.skipped_updates:,} updates whose numbers were not finite")
    _checked(facts)
    if facts.adapter:
        _short(facts.adapter)
    if facts.own:
        trained = f"{facts.trained:,} trained; " if facts.trained is not None else ""
        _say(_word(facts.own["folder"]), f"{_word(facts.method or 'method not said')}, {trained}{_weights(facts.own)}")
    _goes_on(facts)
    if facts.unfinished:
        _say("earlier", f"{', '.join(_word(name) for name in facts.unfinished[:4])}: attempts that did not finish")
    for note in facts.notes:
        say(f"note: {visible(note)}")


def _goes_on(facts: RunFacts) -> None:
    """From where a run that was stopped goes on."""
    if facts.status == "interrupted":
        found = f"after step {facts.goes_on_from:,}" if facts.goes_on_from is not None else "no intact checkpoint"
        _say("goes on", found)
    for name, how in facts.lost.items():
        say(f"error: checkpoint {_word(name)} {_word(how)}")


def _progress(facts: RunFacts) -> str:
    at = f"step {facts.step:,} of {facts.steps:,}" if facts.step is not None and facts.steps else "no step yet"
    by = f" (process {facts.process})" if facts.process else ""
    if facts.seconds is not None:
        return f"{facts.status}{by}, {at}, {clock(facts.seconds)}"
    each = f", {facts.seconds_per_step:.3g} seconds a step" if facts.seconds_per_step is not None else ""
    return f"{facts.status}{by}, {at}{each}"


def _checked(facts: RunFacts) -> None:
    """What was made sure of, and what turns out otherwise now."""
    if facts.verified is not None:
        _say("reloaded", "gave the trained model's logits" if facts.verified else "was not verified")
    if facts.intact is not None:
        _say("intact", "yes: every file is what was published" if facts.intact else "no")
    for name, how in list(facts.differing.items())[:MOST_PROBLEMS]:
        say(f"error: {_word(name)} {_word(how)}")


def _rows(counts: Mapping[str, Any]) -> str:
    """What became of a side's rows."""
    said = [f"{counts[name]:,} {name}" for name in ("read", "kept") if name in counts]
    said += [f"{counts[name]:,} {word}" for name, word in RARE.items() if counts.get(name)]
    said += [f"{count:,} dropped: {_word(reason)}" for reason, count in list(counts.get("dropped", {}).items())[:5]]
    said += [f"{counts['tokens']:,} tokens"] if "tokens" in counts else []
    said += [f"{counts['supervised_tokens']:,} of them learned"] if "supervised_tokens" in counts else []
    return ", ".join(said)


def _short(facts: Mapping[str, Any]) -> None:
    """An adapter within a run or a checkpoint."""
    quantised = f"; its base was quantised to {_quantised(facts['quantization'])}" if facts["quantization"] else ""
    _say("adapter", _what(facts) + quantised)
    if update := facts["update"]:
        _say("updates", f"norm {figure(update['norm'])}, median effective rank {update['effective_rank']:.3g}")
    _problems(facts["problems"])


def _checkpoint(facts: CheckpointFacts) -> None:
    of = f" of {facts.steps:,}" if facts.steps else ""
    at = f"step {facts.step:,}{of}" if facts.step is not None else "step not said"
    epoch = f", epoch {facts.epoch:.3g}" if facts.epoch is not None else ""
    _head(facts.path, f"checkpoint of {facts.layout}, {at}{epoch}; {facts.holds}, {size(facts.size_bytes)}")
    if facts.loss is not None:
        _say("loss", figure(facts.loss))
    for said in figures(facts.metrics):
        _say("measured", _word(said))
    if facts.best:
        value = figure(facts.best["value"]) if facts.best["value"] is not None else "not said"
        where = facts.best["checkpoint"] or (f"step {facts.best['step']}" if facts.best["step"] is not None else "")
        _say("best", value + (f", {_word(where)}" if where else ""))
    _say("complete", "yes" if facts.complete else f"no: lacks {', '.join(facts.missing)}")
    whole = "every file is what was written" if facts.layout == OURS else "as far as safetensors tell"
    _say("intact", f"yes, {whole}" if facts.intact else "no")
    for name, how in list(facts.damaged.items())[:MOST_PROBLEMS]:
        say(f"error: {_word(name)}: {visible(how)}")
    if facts.unopened:
        _say(
            "not opened", f"{', '.join(_word(name) for name in facts.unopened[:6])}: pickles, which run code when read"
        )
    if facts.adapter:
        _short(facts.adapter)
    for note in facts.notes:
        say(f"note: {visible(note)}")


def _head(path: str, said: str) -> None:
    say(f"{visible(path)}: {said}")


def _say(what: str, said: str) -> None:
    say(f"{_word(what)}: {said}")


def _word(text: str) -> str:
    """A stranger's text as part of a line: nothing in it moves the cursor or begins a line, and it comes to an end."""
    line = re.sub(r"[\n\t]", " ", visible(text))
    return line if len(line) <= LONGEST_WORD else f"{line[:LONGEST_WORD]}..."
