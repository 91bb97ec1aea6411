"""Chat templates as Ollama's, and Modelfiles read back."""

from __future__ import annotations

from typing import Any

import pytest

from peftctl.errors import UsageError
from peftctl.gguf import go_template, modelfile
from peftctl.gguf.modelfile import Modelfile
from tests import tiny

NAMED = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nI am Smol<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def render(template: str) -> Any:
    from jinja2 import Environment

    def refuse(message: str) -> None:
        raise ValueError(message)

    made = Environment(autoescape=False)
    made.globals["raise_exception"] = refuse
    return lambda turns: made.from_string(template).render(messages=turns, add_generation_prompt=True)


def test_turns_are_found_and_written_as_go_does() -> None:
    found = go_template.turns(render(tiny.CHATML), "")
    assert found.go() == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
    )


def test_a_system_message_that_the_template_brings_stands_where_there_is_none() -> None:
    found = go_template.turns(render(NAMED), "")
    assert "{{ else }}<|im_start|>system\nI am Smol{{ end }}" in found.go()


def test_a_template_without_system_messages_and_what_begins_texts_by_itself() -> None:
    found = go_template.turns(render(NO_SYSTEM), "<s>")
    assert found.system is None
    assert found.go().startswith('{{ range .Messages }}{{ if eq .Role "user" }}[INST] {{ .Content }} [/INST]')


def test_a_template_that_does_more_is_refused() -> None:
    with pytest.raises(UsageError, match=r"does not write each turn by itself(?s:.)*--to gguf"):
        go_template.turns(render(NUMBERED), "")
    with pytest.raises(UsageError, match="which Ollama's templates cannot"):
        go_template.turns(render(tiny.CHATML.replace("<|im_end|>", "{{ '{{' }}")), "").go()


@pytest.mark.parametrize(
    "made",
    [
        Modelfile("./model.gguf", "{{ .Prompt }}\nmore", (("stop", "<|im_end|>"), ("temperature", "0.7"))),
        Modelfile("./base.gguf", "", (("stop", 'a "quoted"\n\\end'),), "./adapter.gguf"),
    ],
)
def test_a_modelfile_says_what_was_written_into_it(made: Modelfile) -> None:
    assert modelfile.read(made.text()) == made


def test_a_modelfile_without_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="names no model"):
        modelfile.read("PARAMETER temperature 0.7\n")
