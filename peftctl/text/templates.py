"""Chat templates that a recipe can name, for models that come without one, and the tokens each of them needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """A Jinja template; ``tokens`` must each be one token of the tokenizer, or turns would end in mere letters."""

    text: str
    tokens: tuple[str, ...]


CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Gemma has no system role: its instructions stand before the first question.
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
{%- set before = messages[0].content | trim + '\\n\\n' %}
{%- set messages = messages[1:] %}
{%- else %}
{%- set before = '' %}
{%- endif %}
{%- for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + (before if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\\n' }}
{%- endif %}"""

# Nor has Mistral, whose answers end with the end of text.
MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
{%- set before = messages[0].content + '\\n\\n' %}
{%- set messages = messages[1:] %}
{%- else %}
{%- set before = '' %}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '[INST] ' + (before if loop.first else '') + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{{- ' ' + message.content + eos_token }}
{%- else %}
{{- raise_exception('mistral has the roles system, user and assistant only') }}
{%- endif %}
{%- endfor %}"""

TEMPLATES: dict[str, Named] = {
    "chatml": Named(CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": Named(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": Named(GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "mistral": Named(MISTRAL, ()),
}
