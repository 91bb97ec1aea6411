"""A GGUF file, or two of base and adapter, with the Modelfile that Ollama makes a model of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftctl.atomic import write_text
from peftctl.card import title
from peftctl.errors import UsageError, VerificationError
from peftctl.exporters import gguf_adapter, gguf_whole
from peftctl.exporters.contract import Job
from peftctl.gguf import convert, go_template, modelfile
from peftctl.gguf.modelfile import Modelfile
from peftctl.gguf.numbers import TYPES
from peftctl.run import Run

MODEL, BASE, ADAPTER, MODELFILE = "model.gguf", "base.gguf", "adapter.gguf", "Modelfile"
APART = "adapter"  # the type of an export that leaves base and adapter apart
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
UNCHECKED = "no Go template engine is at hand: the template was checked by what its parts give, not in Ollama"
WORDS = """# {name}

For Ollama: `Modelfile` has the template and the tokens that end an answer. `manifest.json` says whether, and how,
the weights were compared in llama.cpp.

```bash
ollama create my-model -f Modelfile
ollama run my-model
```
"""


@dataclass(frozen=True)
class Written:
    """``whole``: what was written of the merged model, None where base and adapter are apart; ``source``: whose config
    and tokenizer count; ``template``: the turns that the Modelfile's was made of, None where there is none."""

    whole: gguf_whole.Written | None
    source: convert.Source
    template: go_template.Turns | None
    file: Modelfile


@dataclass(frozen=True)
class Ollama:
    name: str = "ollama"
    summary: str = "a GGUF file with a Modelfile; --type adapter: base and adapter apart"
    types: tuple[str, ...] = (*TYPES, APART)
    opens_base: bool = True
    checked_with: Mapping[str, str] = field(default_factory=lambda: {"llama_cpp": "gguf"})
    written_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        if type_ == APART:
            gguf_adapter.check(run, "--to ollama without --type")
        else:
            gguf_whole.check(run)

    def write(self, job: Job) -> Written:
        if job.type == APART:
            source = gguf_adapter.write(job, job.folder / ADAPTER, "f16")
            turns = _turns(source)
            job.note(f"writing {BASE}, f16")
            convert.convert(source, job.folder / BASE, "f16", job.note)
            return self._beside(job, Written(None, source, turns, _modelfile(source, turns, BASE, ADAPTER)))
        whole = gguf_whole.write(job, job.folder / MODEL, _turns)
        turns = _turns(whole.source)
        return self._beside(job, Written(whole, whole.source, turns, _modelfile(whole.source, turns, MODEL, "")))

    def _beside(self, job: Job, written: Written) -> Written:
        write_text(job.folder / MODELFILE, written.file.text())
        gguf_whole.card(job, WORDS.format(name=title(job.run)), written.whole.kinds if written.whole else None)
        return written

    def verify(self, job: Job, written: Written) -> Mapping[str, Any]:
        """The weights in llama.cpp; the Modelfile read back. Ollama itself is not asked."""
        if modelfile.read((job.folder / MODELFILE).read_text("utf-8")) != written.file:
            raise VerificationError("the Modelfile does not say what was to be written; nothing was published")
        template = {"template": {"verified": "no", "reason": UNCHECKED} if written.template else "none"}
        if written.whole:
            return {**gguf_whole.verify(job, written.whole, job.folder / MODEL), **template}
        file = gguf_adapter.file(written.source, job.folder / BASE, "f16", job.folder / ADAPTER)
        return {**gguf_adapter.verify(job, written.source, file), **template}


def _turns(source: convert.Source) -> go_template.Turns | None:
    """Raises UsageError where the chat template cannot be Ollama's."""
    tokenizer = source.tokenizer
    if not tokenizer.chat_template:
        return None

    def render(turns: Any) -> str:
        text: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        return text

    words = convert.check(source.config, tokenizer)
    return go_template.turns(render, words.tokens[words.special["bos"]] if words.add_bos else "")


def _modelfile(source: convert.Source, turns: go_template.Turns | None, model: str, adapter: str) -> Modelfile:
    stops = [("stop", source.tokenizer.convert_ids_to_tokens(end)) for end in source.ends]
    sampling = [(name, str(source.sampling[key])) for key, name in SAMPLING.items() if source.sampling.get(key)]
    if strange := next((text for _, text in stops if "\r" in text), None):
        raise UsageError(f"ollama: a Modelfile cannot name {strange!r}, which ends an answer")
    at = f"./{adapter}" if adapter else ""
    return Modelfile(f"./{model}", turns.go() if turns else "", tuple(stops + sampling), at)


EXPORTER = Ollama()
