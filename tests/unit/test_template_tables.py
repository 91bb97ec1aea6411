"""Rows under the chat templates of five families, token by token, against tables written by hand.

The templates do what the families' own do; a byte is its own id, and each family's special tokens are numbered from
256. In a table "text" stands for its bytes, read; learned("text") for its bytes, learned; what is in brackets is a
special token by its name. Where a family's template does not write a kind of row, its refusal is what is expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from peftctl.example import Conversation, RowFault, Turn
from peftctl.formats import FORMATS
from peftctl.tasks import TASKS
from peftctl.tasks.contract import Layout
from peftctl.text import chat, tokens
from tests.unit import kinds

SMOLLM2 = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Llama 3.1: a system turn always, with the date; tools stand before the first question; tools answer as ipython,
# in JSON; a call takes the place of the text beside it.
LLAMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}
    {{- 'Environment: ipython\\n' }}
{%- endif %}
{{- 'Today Date: 26 Jul 2024\\n\\n' + system_message + '<|eot_id|>' }}
{%- if tools %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nUse these functions.\\n\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n\\n' }}
    {%- endfor %}
    {{- messages[0].content | trim + '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Qwen3: thoughts of turns before the last question are left out; the last turn has thoughts, if only empty ones.
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# Mistral 7B v0.3: no system role; its text, and the tools, stand with the last question, and the system's text only
# where no answer follows.
MISTRAL = """\
{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
    {%- if message.role != 'tool' and not message.tool_calls %}
        {%- if (message.role == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('After the optional system message, roles must alternate user/assistant') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and message == asked[-1] %}
            {{- '[AVAILABLE_TOOLS] ' }}
            {{- tools | tojson }}
            {{- '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system_message + '\\n\\n' if loop.last and system_message is defined else '') }}
        {{- message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- else %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""


@dataclass(frozen=True)
class Family:
    """``special`` from id 256 on; ``begin`` is what its tokenizer puts before text by itself; ``end`` ends a turn."""

    name: str
    template: str
    special: tuple[str, ...]
    end: str
    begin: str | None = None


FAMILIES = {
    family.name: family
    for family in (
        Family("smollm2", SMOLLM2, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        Family(
            "llama3", LLAMA, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|eot_id|>", "<|begin_of_text|>",
        ),
        Family("gemma", GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<bos>"),
        Family(
            "qwen3", QWEN3, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
                             "<tool_response>", "</tool_response>", "<think>", "</think>"),
            "<|im_end|>",
        ),
        Family(
            "mistral", MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]",
                                 "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
            "</s>", "<s>",
        ),
    )
}  # fmt: skip
IDS = {
    "<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258,  # SmolLM2 and Qwen3
    "<tool_call>": 259, "</tool_call>": 260, "<tool_response>": 261, "</tool_response>": 262,
    "<think>": 263, "</think>": 264,  # Qwen3
    "<|begin_of_text|>": 256, "<|start_header_id|>": 257, "<|end_header_id|>": 258, "<|eot_id|>": 259,  # Llama 3
    "<bos>": 256, "<eos>": 257, "<start_of_turn>": 258, "<end_of_turn>": 259,  # Gemma
    "<s>": 256, "</s>": 257, "[INST]": 258, "[/INST]": 259, "[TOOL_CALLS]": 260, "[AVAILABLE_TOOLS]": 261,
    "[/AVAILABLE_TOOLS]": 262, "[TOOL_RESULTS]": 263, "[/TOOL_RESULTS]": 264,  # Mistral
}  # fmt: skip


@cache
def tokenizer(name: str) -> Any:
    """It pads with the token that ends turns, so what is masked by its id would be seen here."""
    family = FAMILIES[name]
    return kinds.bytes_are_ids(
        family.special,
        family.template,
        begin=family.begin,
        bos_token=family.begin,
        eos_token=family.end,
        pad_token=family.end,
    )


Line = tuple[str, int, bool]  # token, id, supervised


@dataclass(frozen=True)
class Part:
    """A special token by its name, or letters, each of them a token."""

    text: str
    supervised: bool

    def lines(self) -> list[Line]:
        if self.text in IDS:
            return [(self.text, IDS[self.text], self.supervised)]
        assert self.text.isascii()
        assert not any(special in self.text for special in IDS), "a special token has a part of its own"
        return [({" ": "Ġ", "\n": "Ċ"}.get(letter, letter), ord(letter), self.supervised) for letter in self.text]


def read(*texts: str) -> list[Part]:
    return [Part(text, False) for text in texts]


def learned(*texts: str) -> list[Part]:
    return [Part(text, True) for text in texts]


def table(*parts: list[Part]) -> list[Line]:
    return [line for several in parts for part in several for line in part.lines()]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
TOOL = {"type": "function", "function": {"name": "add"}}
SHOWN = '{"type": "function", "function": {"name": "add"}}'

ROWS: dict[str, dict[str, Any]] = {
    "turns": {"messages": [user("q"), answer("a"), user("r"), answer("b")]},
    "system": {"messages": [{"role": "system", "content": "be brief"}, user("q"), answer("a")]},
    "tool": {
        "messages": [
            user("1+2?"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": '"3"', "tool_call_id": "call00001"},
            answer("It is 3."),
        ],
        "tools": [TOOL],
    },
    "trailing user": {"messages": [user("q"), answer("a"), user("r")]},
    "reasoning": {
        "messages": [user("q"), answer("a", reasoning_content="hm"), user("r"), answer("b", reasoning_content="so")]
    },
    "reasoning in the text": {
        "messages": [
            user("q"), answer("<think>\nhm\n</think>\n\na"), user("r"), answer("<think>\nso\n</think>\n\nb"),
        ]
    },
}  # fmt: skip

# SmolLM2. Its own system turn comes first where the row has none.
SMOL_SYSTEM = read(
    "<|im_start|>", "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face", "<|im_end|>", "\n"
)
LLAMA_SYSTEM = read(
    "<|begin_of_text|>",
    "<|start_header_id|>", "system", "<|end_header_id|>", "\n\nToday Date: 26 Jul 2024\n\n", "<|eot_id|>",
)  # fmt: skip
LLAMA_ASSISTANT = read("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n")
MISTRAL_TOOLS = read("[AVAILABLE_TOOLS]", f" [{SHOWN}]", "[/AVAILABLE_TOOLS]")

WRITTEN: dict[tuple[str, str], list[list[Line]]] = {
    ("smollm2", "turns"): [table(
        SMOL_SYSTEM,
        read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"), learned("a", "<|im_end|>"), read("\n"),
        read("<|im_start|>", "user\nr", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"), learned("b", "<|im_end|>"), read("\n"),
    )],
    ("smollm2", "system"): [table(
        read("<|im_start|>", "system\nbe brief", "<|im_end|>", "\n"),
        read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"), learned("a", "<|im_end|>"), read("\n"),
    )],
    ("smollm2", "trailing user"): [table(
        SMOL_SYSTEM,
        read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"), learned("a", "<|im_end|>"), read("\n"),
        read("<|im_start|>", "user\nr", "<|im_end|>", "\n"),
    )],
    ("smollm2", "reasoning in the text"): [table(
        SMOL_SYSTEM,
        read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"),
        learned("<", "think>\nhm\n<", "/think>\n\na", "<|im_end|>"), read("\n"),  # mere letters here
        read("<|im_start|>", "user\nr", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"),
        learned("<", "think>\nso\n<", "/think>\n\nb", "<|im_end|>"), read("\n"),
    )],
    ("llama3", "turns"): [table(
        LLAMA_SYSTEM,
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nq", "<|eot_id|>"),
        read("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"), learned("a", "<|eot_id|>"),
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nr", "<|eot_id|>"),
        read("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"), learned("b", "<|eot_id|>"),
    )],
    ("llama3", "system"): [table(
        read("<|begin_of_text|>", "<|start_header_id|>", "system", "<|end_header_id|>"),
        read("\n\nToday Date: 26 Jul 2024\n\nbe brief", "<|eot_id|>"),
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nq", "<|eot_id|>"),
        read("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"), learned("a", "<|eot_id|>"),
    )],
    ("llama3", "tool"): [table(
        read("<|begin_of_text|>", "<|start_header_id|>", "system", "<|end_header_id|>"),
        read("\n\nEnvironment: ipython\nToday Date: 26 Jul 2024\n\n", "<|eot_id|>"),
        read("<|start_header_id|>", "user", "<|end_header_id|>"),
        read(f"\n\nUse these functions.\n\n{SHOWN}\n\n1+2?", "<|eot_id|>"),
        read("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
        learned('{"name": "add", "parameters": {"a": 1, "b": 2}}', "<|eot_id|>"),
        read("<|start_header_id|>", "ipython", "<|end_header_id|>", '\n\n"\\"3\\""', "<|eot_id|>"),
        read("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"), learned("It is 3.", "<|eot_id|>"),
    )],
    ("llama3", "trailing user"): [table(
        LLAMA_SYSTEM,
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nq", "<|eot_id|>"),
        read("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"), learned("a", "<|eot_id|>"),
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nr", "<|eot_id|>"),
    )],
    ("llama3", "reasoning in the text"): [table(
        LLAMA_SYSTEM,
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nq", "<|eot_id|>"),
        LLAMA_ASSISTANT, learned("<", "think>\nhm\n<", "/think>\n\na", "<|eot_id|>"),
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nr", "<|eot_id|>"),
        LLAMA_ASSISTANT, learned("<", "think>\nso\n<", "/think>\n\nb", "<|eot_id|>"),
    )],
    ("gemma", "turns"): [table(
        read("<bos>", "<start_of_turn>", "user\nq", "<end_of_turn>", "\n"),
        read("<start_of_turn>", "model\n"), learned("a", "<end_of_turn>"), read("\n"),
        read("<start_of_turn>", "user\nr", "<end_of_turn>", "\n"),
        read("<start_of_turn>", "model\n"), learned("b", "<end_of_turn>"), read("\n"),
    )],
    ("gemma", "trailing user"): [table(
        read("<bos>", "<start_of_turn>", "user\nq", "<end_of_turn>", "\n"),
        read("<start_of_turn>", "model\n"), learned("a", "<end_of_turn>"), read("\n"),
        read("<start_of_turn>", "user\nr", "<end_of_turn>", "\n"),
    )],
    ("gemma", "reasoning in the text"): [table(
        read("<bos>", "<start_of_turn>", "user\nq", "<end_of_turn>", "\n"),
        read("<start_of_turn>", "model\n"),
        learned("<", "think>\nhm\n<", "/think>\n\na", "<end_of_turn>"), read("\n"),
        read("<start_of_turn>", "user\nr", "<end_of_turn>", "\n"),
        read("<start_of_turn>", "model\n"),
        learned("<", "think>\nso\n<", "/think>\n\nb", "<end_of_turn>"), read("\n"),
    )],
    # Qwen3: the last turn has empty thoughts, which are learned; a turn before has none. So each has its own row.
    ("qwen3", "turns"): [
        table(
            read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\n"),
            learned("<think>", "\n\n", "</think>", "\n\na", "<|im_end|>"), read("\n"),
        ),
        table(
            read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\na", "<|im_end|>", "\n"),
            read("<|im_start|>", "user\nr", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\n"),
            learned("<think>", "\n\n", "</think>", "\n\nb", "<|im_end|>"), read("\n"),
        ),
    ],
    ("qwen3", "system"): [table(
        read("<|im_start|>", "system\nbe brief", "<|im_end|>", "\n"),
        read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"),
        learned("<think>", "\n\n", "</think>", "\n\na", "<|im_end|>"), read("\n"),
    )],
    ("qwen3", "tool"): [
        table(
            read("<|im_start|>", f"system\n# Tools\n<tools>\n{SHOWN}\n</tools>", "<|im_end|>", "\n"),
            read("<|im_start|>", "user\n1+2?", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\n"),
            learned("<think>", "\n\n", "</think>", "\n\n", "<tool_call>"),
            learned('\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n', "</tool_call>", "<|im_end|>"), read("\n"),
        ),
        table(
            read("<|im_start|>", f"system\n# Tools\n<tools>\n{SHOWN}\n</tools>", "<|im_end|>", "\n"),
            read("<|im_start|>", "user\n1+2?", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\n", "<tool_call>"),
            read('\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n', "</tool_call>", "<|im_end|>", "\n"),
            read("<|im_start|>", "user\n", "<tool_response>", '\n"3"\n', "</tool_response>", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\n"),
            learned("<think>", "\n\n", "</think>", "\n\nIt is 3.", "<|im_end|>"), read("\n"),
        ),
    ],
    ("qwen3", "trailing user"): [table(
        read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"),
        learned("<think>", "\n\n", "</think>", "\n\na", "<|im_end|>"), read("\n"),
    )],
    **{("qwen3", kind): [
        table(
            read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\n"),
            learned("<think>", "\nhm\n", "</think>", "\n\na", "<|im_end|>"), read("\n"),
        ),
        table(
            read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\na", "<|im_end|>", "\n"),
            read("<|im_start|>", "user\nr", "<|im_end|>", "\n"),
            read("<|im_start|>", "assistant\n"),
            learned("<think>", "\nso\n", "</think>", "\n\nb", "<|im_end|>"), read("\n"),
        ),
    ] for kind in ("reasoning", "reasoning in the text")},
    ("mistral", "turns"): [table(
        read("<s>", "[INST]", " q", "[/INST]"), learned(" a", "</s>"),
        read("[INST]", " r", "[/INST]"), learned(" b", "</s>"),
    )],
    ("mistral", "tool"): [table(
        read("<s>"), MISTRAL_TOOLS, read("[INST]", " 1+2?", "[/INST]"),
        learned("[TOOL_CALLS]", ' [{"name": "add", "arguments": {"a": 1, "b": 2}, "id": "call00001"}]', "</s>"),
        read("[TOOL_RESULTS]", ' {"content": "3", "call_id": "call00001"}', "[/TOOL_RESULTS]"),
        learned(" It is 3.", "</s>"),
    )],
    ("mistral", "trailing user"): [table(
        read("<s>", "[INST]", " q", "[/INST]"), learned(" a", "</s>"),
        read("[INST]", " r", "[/INST]"),
    )],
    ("mistral", "reasoning in the text"): [table(
        read("<s>", "[INST]", " q", "[/INST]"), learned(" <", "think>\nhm\n<", "/think>\n\na", "</s>"),
        read("[INST]", " r", "[/INST]"), learned(" <", "think>\nso\n<", "/think>\n\nb", "</s>"),
    )],
}  # fmt: skip

UNREASONED = "the chat template does not write the reasoning_content of message 2"
UNWRITTEN_TOOLS = "the chat template does not write the row's tools (add)"
REFUSED: dict[tuple[str, str], str] = {
    ("smollm2", "tool"): UNWRITTEN_TOOLS,
    ("smollm2", "reasoning"): UNREASONED,
    ("llama3", "reasoning"): UNREASONED,
    ("gemma", "system"): "the chat template refuses these messages: System role not supported",
    ("gemma", "tool"): (
        "the chat template refuses these messages: "
        "Conversation roles must alternate user/assistant/user/assistant/..."
    ),
    ("gemma", "reasoning"): UNREASONED,
    # It writes the system's text where an answer is asked for, and leaves it out once the answer is there.
    ("mistral", "system"): (
        "the chat template writes message 3 differently when generating than in a history, "
        "so no mask for it would match inference"
    ),
    ("mistral", "reasoning"): UNREASONED,
}  # fmt: skip


def encoded(family: str, row: dict[str, Any], learn: str = "assistant") -> list[tokens.Encoded] | RowFault:
    (made,) = TASKS["causal_lm"].encode([FORMATS["messages"].example(row)], tokenizer(family), learn)
    return made


def shown(family: str, rows: list[tokens.Encoded]) -> list[list[Line]]:
    names = tokenizer(family).convert_ids_to_tokens
    return [
        list(zip(names(list(row.ids)), row.ids, [weight != 0 for weight in row.weights], strict=True)) for row in rows
    ]


def test_every_kind_of_row_has_a_table_or_a_refusal_in_every_family() -> None:
    every = {(family, kind) for family in FAMILIES for kind in ROWS}
    assert set(WRITTEN) | set(REFUSED) == every
    assert not set(WRITTEN) & set(REFUSED)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_in_the_tables_are_the_tokenizer_s(family: str) -> None:
    for number, special in enumerate(FAMILIES[family].special, start=256):
        assert IDS[special] == number == tokenizer(family).convert_tokens_to_ids(special)


@pytest.mark.parametrize(("family", "kind"), WRITTEN)
def test_a_row_is_these_tokens_and_these_are_learned(family: str, kind: str) -> None:
    made = encoded(family, ROWS[kind])
    assert isinstance(made, list), made
    assert shown(family, made) == WRITTEN[family, kind]


@pytest.mark.parametrize(("family", "kind"), REFUSED)
def test_what_a_template_does_not_write_is_refused(family: str, kind: str) -> None:
    made = encoded(family, ROWS[kind])
    assert isinstance(made, RowFault)
    assert str(made) == REFUSED[family, kind]


@pytest.mark.parametrize(("family", "kind"), WRITTEN)
def test_what_stands_before_a_learned_part_is_what_inference_shows(family: str, kind: str) -> None:
    """In ids: those of the rendered prompt are just the row's ids before the learned part."""
    conversation = FORMATS["messages"].example(ROWS[kind])
    assert isinstance(conversation, Conversation)
    made = encoded(family, ROWS[kind])
    assert isinstance(made, list)
    before = [
        row.ids[:at]
        for row in made
        for at in range(1, len(row))
        if row.weights[at] and not row.weights[at - 1]
    ]  # fmt: skip
    prompts = []
    for index, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            text = chat.render(
                conversation.turns[:index], tokenizer(family), generation_prompt=True, tools=conversation.tools
            )
            prompts.append(tuple(tokens.prompt_ids(text, tokenizer(family), whole=False)))
    assert before == prompts


@pytest.mark.parametrize(("family", "kind"), WRITTEN)
def test_learned_parts_end_with_the_end_of_turn_and_the_text_begins_once(family: str, kind: str) -> None:
    made = encoded(family, ROWS[kind])
    assert isinstance(made, list)
    end, begin = IDS[FAMILIES[family].end], FAMILIES[family].begin
    for row in made:
        ends = [at for at, weight in enumerate(row.weights) if weight and not (*row.weights, 0.0)[at + 1]]
        assert ends
        assert {row.ids[at] for at in ends} == {end}
        if begin:
            assert row.ids[0] == IDS[begin]
            assert row.ids.count(IDS[begin]) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_turn_is_a_target_though_its_id_pads(family: str) -> None:
    rows = encoded(family, ROWS["turns"])
    short = encoded(family, {"messages": [user("q"), answer("a")]})
    assert isinstance(rows, list)
    assert isinstance(short, list)
    end = IDS[FAMILIES[family].end]
    batch = TASKS["causal_lm"].collate([*rows, *short], Layout(pad_id=end))
    wanted = [[token for token, weight in zip(row.ids, row.weights, strict=True) if weight] for row in [*rows, *short]]
    found = [
        [int(t) for t, o in zip(batch["targets"], batch["owners"], strict=True) if o == n] for n in range(len(wanted))
    ]
    assert found == wanted
    assert all(targets[-1] == end for targets in found)


def test_last_learns_the_last_answer_of_a_row() -> None:
    made = encoded("llama3", ROWS["turns"], "last")
    assert isinstance(made, list)
    assert shown("llama3", made) == [table(
        LLAMA_SYSTEM,
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nq", "<|eot_id|>"),
        LLAMA_ASSISTANT, read("a", "<|eot_id|>"),
        read("<|start_header_id|>", "user", "<|end_header_id|>", "\n\nr", "<|eot_id|>"),
        LLAMA_ASSISTANT, learned("b", "<|eot_id|>"),
    )]  # fmt: skip
    made = encoded("qwen3", ROWS["reasoning"], "last")
    assert isinstance(made, list)
    assert shown("qwen3", made) == WRITTEN["qwen3", "reasoning"][1:]


def test_all_learns_all_that_the_template_writes() -> None:
    made = encoded("qwen3", ROWS["reasoning"], "all")
    assert isinstance(made, list)
    assert shown("qwen3", made) == [
        [(token, number, True) for token, number, _ in WRITTEN["qwen3", "reasoning"][1]]
    ]  # fmt: skip


def test_a_message_s_weight_is_that_of_its_tokens() -> None:
    row = {"messages": [user("q"), answer("a", weight=0.5), user("r"), answer("b", weight=0), user("s"), answer("c")]}
    made = encoded("mistral", row)
    assert isinstance(made, list)
    assert [weight for weight in made[0].weights if weight] == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0]
    assert shown("mistral", made) == [table(
        read("<s>", "[INST]", " q", "[/INST]"), learned(" a", "</s>"),
        read("[INST]", " r", "[/INST]"), read(" b", "</s>"),
        read("[INST]", " s", "[/INST]"), learned(" c", "</s>"),
    )]  # fmt: skip


def test_qwen3_keeps_thoughts_between_calls_so_there_is_one_row() -> None:
    messages = [*ROWS["tool"]["messages"]]
    messages[1] = messages[1] | {"reasoning_content": "sum"}
    messages[3] = messages[3] | {"reasoning_content": "done"}
    made = encoded("qwen3", {"messages": messages})
    assert isinstance(made, list)
    assert shown("qwen3", made) == [table(
        read("<|im_start|>", "user\n1+2?", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"),
        learned("<think>", "\nsum\n", "</think>", "\n\n", "<tool_call>"),
        learned('\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n', "</tool_call>", "<|im_end|>"), read("\n"),
        read("<|im_start|>", "user\n", "<tool_response>", '\n"3"\n', "</tool_response>", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"),
        learned("<think>", "\ndone\n", "</think>", "\n\nIt is 3.", "<|im_end|>"), read("\n"),
    )]  # fmt: skip


def test_mistral_moves_the_tools_to_the_last_question_so_each_turn_has_its_row() -> None:
    made = encoded("mistral", {**ROWS["turns"], "tools": [TOOL]})
    assert isinstance(made, list)
    assert shown("mistral", made) == [
        table(read("<s>"), MISTRAL_TOOLS, read("[INST]", " q", "[/INST]"), learned(" a", "</s>")),
        table(
            read("<s>", "[INST]", " q", "[/INST]", " a", "</s>"),
            MISTRAL_TOOLS, read("[INST]", " r", "[/INST]"), learned(" b", "</s>"),
        ),
    ]  # fmt: skip


CALLED = [ROWS["tool"]["messages"][0], answer("Let me add.", tool_calls=[CALL])]
BARE = {key: value for key, value in CALL.items() if key != "id"}


@pytest.mark.parametrize(
    ("family", "messages", "fault"),
    [
        ("smollm2", CALLED, "the chat template does not write the call of add in message 2"),
        ("gemma", CALLED, "the chat template does not write the call of add in message 2"),
        ("llama3", CALLED, "the chat template does not write the text of message 2 as it stands"),
        ("mistral", CALLED, "the chat template does not write the text of message 2 as it stands"),
        ("llama3", [user("q"), {"role": "assistant", "tool_calls": [CALL, CALL]}],
         "the chat template refuses these messages: This model only supports single tool-calls at once!"),
        ("mistral", [user("q"), {"role": "assistant", "tool_calls": [BARE]}],
         "the chat template refuses these messages: Tool call IDs should be alphanumeric strings with length 9!"),
        ("qwen3", [user("q"), answer("<think>hm</think>a")],
         "the chat template does not write the text of message 2 as it stands"),
    ],
)  # fmt: skip
def test_part_of_a_message_that_a_template_leaves_out_is_refused(family: str, messages: Any, fault: str) -> None:
    made = encoded(family, {"messages": messages})
    assert isinstance(made, RowFault)
    assert str(made) == fault


def test_qwen3_writes_text_and_several_calls_of_one_turn() -> None:
    row = {"messages": [user("q"), answer("Let me add.", tool_calls=[CALL, CALL])]}
    made = encoded("qwen3", row)
    assert isinstance(made, list)
    call = ["<tool_call>", '\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n', "</tool_call>"]
    assert shown("qwen3", made) == [table(
        read("<|im_start|>", "user\nq", "<|im_end|>", "\n"),
        read("<|im_start|>", "assistant\n"),
        learned("<think>", "\n\n", "</think>", "\n\nLet me add.\n", *call, "\n", *call, "<|im_end|>"), read("\n"),
    )]  # fmt: skip


def test_a_turn_of_r1_s_kind_is_refused_and_never_learned_without_the_thoughts_that_are_opened() -> None:
    """R1 opens thoughts when generating, and leaves them out of every turn of a history, the last too."""
    r1 = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '<User>' + message.content }}"
        "{% else %}{{ '<Assistant>' + message.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"
    )
    made = kinds.bytes_are_ids(("<bos>", "<eos>"), r1, bos_token="<bos>", eos_token="<eos>")
    for said in ("a", "<think>\nhm\n</think>a"):
        conversation = Conversation((Turn("user", "q"), Turn("assistant", said, 1.0)))
        (fault,) = TASKS["causal_lm"].encode([conversation], made)
        assert str(fault) == (
            "the chat template writes message 2 differently when generating than in a history, "
            "so no mask for it would match inference"
        )
