"""Rows to examples: what each format takes, and what it says of what it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from peftctl.example import Conversation, Pair, Preference, RowFault, Segment, Segments, Triple, Turn
from peftctl.formats import FORMATS

# Any: what a format makes is one of several kinds, and each test knows which.
MESSAGES, INSTRUCTION, PROMPT, TEXT, PREFERENCE, PAIRS, TRIPLES = (
    cast(Any, FORMATS[name])
    for name in ("messages", "instruction", "prompt_completion", "text", "preference", "pairs", "triples")
)

EMPTY, COLUMNS, TYPE = "says nothing", "wrong columns", "wrong type"
ORDER, ROLE, KEY = "roles out of order", "unknown role", "unknown key"
TOO_LARGE = 10**400  # no float is as large, and JSON may hold it


def refused(fmt: Any, row: Any) -> tuple[str, str]:
    with pytest.raises(RowFault) as fault:
        fmt.example(row)
    return str(fault.value), fault.value.kind


def said(role: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def sharegpt(who: Any, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": who, "value": value, **more}


Q, A = said("user", "q"), said("assistant", "a")


def turns(*messages: Any, **columns: Any) -> tuple[Turn, ...]:
    made = MESSAGES.example({"messages": list(messages), **columns})
    assert isinstance(made, Conversation)
    return made.turns


def test_every_format_is_listed_under_its_name() -> None:
    assert all(name == fmt.name for name, fmt in FORMATS.items())


# Rows that use all that a format reads, one for each of the ways in which its columns can stand.
FULL: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"messages": [Q, A], "system": "s", "tools": [{"name": "f"}]},
        {"conversations": [sharegpt("human", "q"), sharegpt("gpt", "a")]},
    ],
    "instruction": [{"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]}],
    "prompt_completion": [
        {"prompt": "p", "completion": "c"},
        {"prompt": [Q], "completion": [A], "tools": [{"name": "f"}]},
    ],
    "text": [{"text": "t"}],
    "preference": [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": [A], "rejected": [said("assistant", "b")], "tools": [{"name": "f"}]},
    ],
    "pairs": [
        {"anchor": "a", "positive": "p"},
        {"source": "a", "target": "b"},
        {"sentence1": "a", "sentence2": "b", "score": 1},
    ],
    "triples": [{"anchor": "a", "positive": "p", "negative": "n"}],
    "labelled": [{"text": "t", "label": "x"}, {"sentence1": "a", "sentence2": "b", "label": ["x", "y"]}],
    "tagged": [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}],
    "squad": [{"question": "q", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}],
}
each_format = pytest.mark.parametrize("name", FORMATS)


class Watching(Mapping[str, Any]):
    """A row that notes which columns are looked at."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row, self.seen = row, set[str]()

    def __getitem__(self, column: str) -> Any:
        self.seen.add(column)
        return self.row[column]

    def __contains__(self, column: object) -> bool:
        self.seen.add(str(column))
        return column in self.row

    def __iter__(self) -> Any:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)


@each_format
def test_what_a_format_reads_is_just_what_it_looks_at(name: str) -> None:
    seen: set[str] = set()
    for row in FULL[name]:
        watching = Watching(row)
        FORMATS[name].example(watching)
        seen |= watching.seen
    if name == "pairs":  # the other format of the same columns
        assert "negative" not in seen
    assert seen == set(FORMATS[name].reads)
    assert len(FORMATS[name].reads) == len(set(FORMATS[name].reads))


@each_format
def test_every_column_that_a_format_reads_has_a_meaning(name: str) -> None:
    """Leaving one out of a row that uses all gives another example, or none."""
    for row in FULL[name]:
        whole = FORMATS[name].example(row)
        for column in row:
            try:
                less = FORMATS[name].example({key: value for key, value in row.items() if key != column})
            except RowFault:
                continue
            assert less != whole, column


@each_format
def test_rows_become_what_their_format_makes_and_each_of_it(name: str) -> None:
    made = [FORMATS[name].example(row) for row in FULL[name]]
    assert {type(example) for example in made} == set(FORMATS[name].makes)


@each_format
def test_rows_match_their_format_by_their_columns_and_no_other_format(name: str) -> None:
    for row in FULL[name]:
        matching = [other for other in FORMATS if FORMATS[other].matches(frozenset(row))]
        # What has a label is a text besides, for tasks that learn texts.
        assert [other for other in matching if FORMATS[other].makes != (Segments,) or other == name] == [name]


@each_format
def test_a_format_says_which_columns_it_takes(name: str) -> None:
    needed = {"messages": ("messages", "conversations", "from", "value"), "instruction": ("instruction", "output")}
    said = FORMATS[name].columns
    for column in needed.get(name, FORMATS[name].reads):
        assert column in said or column == "tools"


@pytest.mark.parametrize(
    ("columns", "matching"),
    [
        ({"messages"}, ["messages"]),
        ({"messages", "id"}, ["messages"]),
        ({"conversations", "system", "tools"}, ["messages"]),
        ({"instruction", "input", "output"}, ["instruction"]),
        ({"instruction", "output", "text"}, ["instruction", "text"]),
        ({"instruction", "response"}, []),
        ({"prompt", "completion", "id"}, ["prompt_completion"]),
        ({"prompt"}, []),
        ({"completion"}, []),
        ({"text"}, ["text"]),
        ({"prompt", "chosen", "rejected"}, ["preference"]),
        ({"chosen", "rejected"}, ["preference"]),
        ({"chosen"}, []),
        ({"anchor", "positive"}, ["pairs"]),
        ({"anchor", "positive", "negative"}, ["triples"]),
        ({"anchor", "negative"}, []),
        ({"sentence1", "sentence2", "score"}, ["pairs"]),
        ({"sentence1", "sentence2"}, []),
        (set(), []),
    ],
)
def test_columns_say_which_format_a_row_has(columns: set[str], matching: list[str]) -> None:
    assert [fmt.name for fmt in FORMATS.values() if fmt.matches(frozenset(columns))] == matching


def test_messages_are_turns_of_which_the_assistant_s_are_learned() -> None:
    row = {"messages": [said("system", "s"), said("user", " q\n"), said("assistant", "a "), said("user", "")]}
    assert MESSAGES.example(row | {"id": 3}) == Conversation(
        (Turn("system", "s"), Turn("user", " q\n"), Turn("assistant", "a ", 1.0), Turn("user", ""))
    )


@pytest.mark.parametrize(
    ("row", "fault", "kind"),
    [
        ({}, "no list of messages (columns: none)", COLUMNS),
        ({"a": 1, "b": 2}, "no list of messages (columns: a, b)", COLUMNS),
        ({"messages": None}, "no list of messages (columns: messages)", COLUMNS),
        ({"messages": [Q, A], "conversations": []}, "two lists of messages (columns: messages, conversations)",
         COLUMNS),
        ({"messages": "hi"}, "messages is text, not a list of messages", TYPE),
        ({"messages": {"role": "user"}}, "messages is an object, not a list of messages", TYPE),
        ({"conversations": 3}, "conversations is a number, not a list of messages", TYPE),
        ({"conversations": True}, "conversations is true or false, not a list of messages", TYPE),
        ({"messages": []}, "messages is empty", EMPTY),
        ({"messages": [Q, A], "system": 3}, "system is a number, not text", TYPE),
        ({"messages": [said("system", "s"), Q, A], "system": "t"}, "a column system, and a system message too", ORDER),
        ({"messages": [Q, A], "tools": "f("},
         "tools is text that is not JSON: Expecting value: line 1 column 1 (char 0)", TYPE),
        ({"messages": [Q, A], "tools": {"name": "f"}}, "tools is not a list of objects", TYPE),
        ({"messages": [Q, A], "tools": '{"name": "f"}'}, "tools is not a list of objects", TYPE),
        ({"messages": [Q, A], "tools": ["f"]}, "tools is not a list of objects", TYPE),
    ],
)  # fmt: skip
def test_messages_say_what_is_wrong_with_a_row(row: Any, fault: str, kind: str) -> None:
    assert refused(MESSAGES, row) == (fault, kind)


CALLS = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


@pytest.mark.parametrize(
    ("messages", "fault", "kind"),
    [
        (["hi"], "message 1 is text, not {role, content}", TYPE),
        ([Q, None], "message 2 is null, not {role, content}", TYPE),
        ([Q, [A]], "message 2 is a list, not {role, content}", TYPE),
        ([said("bot", "q")], "message 1 has the role 'bot'; allowed: system, user, assistant, tool", ROLE),
        ([{"content": "q"}], "message 1 has the role None; allowed: system, user, assistant, tool", ROLE),
        ([said(["user"], "q")], "message 1 has the role ['user']; allowed: system, user, assistant, tool", ROLE),
        ([{"role": "user"}], "message 1 has null for content, not text", TYPE),
        ([said("user", 3)], "message 1 has a number for content, not text", TYPE),
        ([said("user", {"type": "text", "text": "q"})], "message 1 has an object for content, not text", TYPE),
        ([said("user", [{"type": "text"}])], "message 1 has content that is not text alone", TYPE),
        ([said("user", [{"type": "text", "text": "q"}, {"type": "image"}])],
         "message 1 has content that is not text alone", TYPE),
        ([said("user", ["q"])], "message 1 has content that is not text alone", TYPE),
        ([Q, said("assistant", "")], "message 2 is an assistant turn that says nothing", EMPTY),
        ([Q, said("assistant", " \n")], "message 2 is an assistant turn that says nothing", EMPTY),
        ([Q, said("assistant", [])], "message 2 is an assistant turn that says nothing", EMPTY),
        ([Q, said("assistant", None, tool_calls=[])], "message 2 has null for content, not text", TYPE),
        ([said("user", "q", b=1, audio="x")], "message 1 has audio, b, which this format does not read", KEY),
        ([said("user", "q", **{"from": "human"})], "message 1 has from, which this format does not read", KEY),
        ([Q, said("assistant", "a", weight="1")], "message 2 has the weight '1'; allowed: numbers from 0", TYPE),
        ([Q, said("assistant", "a", weight=-0.5)], "message 2 has the weight -0.5; allowed: numbers from 0", TYPE),
        ([Q, said("assistant", "a", weight=True)], "message 2 has the weight True; allowed: numbers from 0", TYPE),
        ([Q, said("assistant", "a", weight=float("nan"))],
         "message 2 has the weight nan; allowed: numbers from 0", TYPE),
        ([Q, said("assistant", "a", weight=float("inf"))],
         "message 2 has the weight inf; allowed: numbers from 0", TYPE),
        ([Q, said("assistant", "a", weight=TOO_LARGE)],
         f"message 2 has the weight {TOO_LARGE}; allowed: numbers from 0", TYPE),
        ([said("user", "q", weight=1)], "message 1 is the user's and has a weight: only answers are learned", TYPE),
        ([Q, said("assistant", "a", reasoning_content=3)],
         "message 2 has a number for reasoning_content, not text", TYPE),
        ([said("user", "q", name=["x"])], "message 1 has a list for name, not text", TYPE),
        ([Q, said("assistant", "a", tool_calls="f()")], "message 2 has text for tool_calls, not a list", TYPE),
        ([Q, said("assistant", "a", tool_calls={"name": "f"})],
         "message 2 has an object for tool_calls, not a list", TYPE),
        ([said("user", "q", **CALLS)], "message 1 is the user's and has tool_calls: only the assistant calls", TYPE),
        ([Q, said("assistant", None, tool_calls=["f"])], "message 2 has a tool call without a function's name", TYPE),
        ([Q, said("assistant", None, tool_calls=[{"function": "f"}])],
         "message 2 has a tool call without a function's name", TYPE),
        ([Q, said("assistant", None, tool_calls=[{"function": {"arguments": {}}}])],
         "message 2 has a tool call without a function's name", TYPE),
        ([Q, said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "x=1"}}])],
         "message 2 calls f with no JSON: Expecting value: line 1 column 1 (char 0)", TYPE),
        ([Q, said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])],
         "message 2 calls f with a list, not an object", TYPE),
        ([Q, said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": 3}}])],
         "message 2 calls f with a number, not an object", TYPE),
    ],
)  # fmt: skip
def test_a_message_that_is_wrong_is_named_by_its_number(messages: Any, fault: str, kind: str) -> None:
    assert refused(MESSAGES, {"messages": messages}) == (fault, kind)


S, T = said("system", "s"), said("tool", "t")


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([Q, S], "message 2 has the role system, which only the first may have"),
        ([S, S, Q, A], "message 2 has the role system, which only the first may have"),
        ([A], "message 1 is the assistant's, and no question comes before it"),
        ([S, A], "message 2 is the assistant's, and no question comes before it"),
        ([Q, A, A], "message 3 is the assistant's like the one before it"),
        ([S, Q, Q, A], "message 3 is the user's like the one before it"),
        ([T], "message 1 is a tool's, and no call comes before it"),
        ([Q, T, A], "message 2 is a tool's, and no call comes before it"),
        ([S, T], "message 2 is a tool's, and no call comes before it"),
    ],
)
def test_roles_out_of_order_are_refused(messages: Any, fault: str) -> None:
    assert refused(MESSAGES, {"messages": messages}) == (fault, ORDER)


@pytest.mark.parametrize(
    "messages", [[Q, A], [S, Q, A], [Q, A, Q], [Q, A, T, A], [Q, A, T, T, A], [Q, A, T, Q, A], [Q], [S], [Q, A, T]]
)
def test_roles_in_order_are_taken(messages: Any) -> None:
    assert [turn.role for turn in turns(*messages)] == [message["role"] for message in messages]


@pytest.mark.parametrize(("weight", "learned"), [(0, 0.0), (0.0, 0.0), (1, 1.0), (0.25, 0.25), (3, 3.0), (None, 1.0)])
def test_a_message_s_weight_scales_what_it_teaches(weight: Any, learned: float) -> None:
    assert turns(said("user", "q", weight=0), said("assistant", "a", weight=weight))[1].weight == learned


def test_keys_that_are_null_are_not_there() -> None:
    """Columnar files give every message the keys that any message has."""
    nulls = {"name": None, "tool_calls": None, "tool_call_id": None, "weight": None, "from": None, "refusal": None}
    call = {
        "id": None,
        "type": "function",
        "function": {"name": "f", "arguments": '{"x": null}', "description": None},
    }
    assert turns(
        said("user", [{"type": "text", "text": "q", "image_url": None}], **nulls),
        said("assistant", None, **(nulls | {"tool_calls": [call]})),
    ) == (
        Turn("user", "q"),
        Turn("assistant", "", 1.0, {"tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
        ]}),
    )  # fmt: skip


def test_what_a_template_may_write_beside_the_text_is_kept() -> None:
    made = turns(
        said("user", "q", name="ann"),
        said("assistant", "a", reasoning_content="hm", thinking="so"),
        said("tool", "1", tool_call_id="c1", name="add"),
    )
    assert [dict(turn.fields) for turn in made] == [
        {"name": "ann"}, {"reasoning_content": "hm", "thinking": "so"}, {"name": "add", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert turns(said("user", "q", name=""), said("assistant", "a", tool_calls=[], reasoning_content="")) == turns(Q, A)


def test_parts_that_are_all_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert turns(said("user", parts), A)[0].content == "a b"
    assert turns(said("user", []), A)[0].content == ""


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{"x": [1, "é"]}', {"x": [1, "é"]}),
        ({"x": [1, "é"]}, {"x": [1, "é"]}),
        ("{}", {}),
        ({}, {}),
        ("", {}),
        ("null", {}),
        (None, {}),
    ],
)
def test_a_call_s_arguments_are_an_object_however_they_are_written(arguments: Any, wanted: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    assert turns(Q, said("assistant", None, tool_calls=[call]))[1] == Turn(
        "assistant", "", 1.0,
        {"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": wanted}}]},
    )  # fmt: skip


def test_a_call_may_be_written_without_its_envelope() -> None:
    made = turns(Q, said("assistant", "so", tool_calls=[{"name": "f", "arguments": "{}"}, {"name": "g"}]))[1]
    assert made.content == "so"
    assert made.fields["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {}}},
        {"type": "function", "function": {"name": "g", "arguments": {}}},
    ]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"é": [1, None]}}}


@pytest.mark.parametrize("written", [[TOOL], json.dumps([TOOL]), f"\n{json.dumps([TOOL])} "])
def test_tools_are_a_list_or_json_text(written: Any) -> None:
    assert MESSAGES.example({"messages": [Q, A], "tools": written}).tools == (TOOL,)


@pytest.mark.parametrize("written", [None, [], "", " \n", "[]", "null"])
def test_a_row_may_have_no_tools(written: Any) -> None:
    assert MESSAGES.example({"messages": [Q, A], "tools": written}).tools == ()


@pytest.mark.parametrize("fmt", [MESSAGES, PROMPT, PREFERENCE], ids=lambda fmt: fmt.name)
def test_json_nested_too_deeply_is_a_fault_of_the_row(fmt: Any) -> None:
    deep = "[" * 100_000
    row = {"messages": [Q, A], "prompt": [Q], "completion": [A], "chosen": [A], "rejected": [A], "tools": deep}
    fault, kind = refused(fmt, row)
    assert fault.startswith("tools is text that is not JSON: maximum recursion depth")
    assert kind == TYPE


def test_a_column_may_hold_what_the_system_says() -> None:
    assert turns(Q, A, system="be brief")[0] == Turn("system", "be brief")
    assert len(turns(Q, A, system=None)) == len(turns(Q, A, system="")) == 2


@pytest.mark.parametrize(
    ("who", "role"),
    [
        ("human", "user"), ("user", "user"), ("gpt", "assistant"), ("assistant", "assistant"), ("system", "system"),
        ("tool", "tool"), ("observation", "tool"), ("function_response", "tool"),
    ],
)  # fmt: skip
def test_share_gpt_s_speakers_have_roles(who: str, role: str) -> None:
    before = {"assistant": [Q], "tool": [Q, A]}.get(role, [])
    made = MESSAGES.example({"conversations": [*before, sharegpt(who, "said")]}).turns[-1]
    assert made == Turn(role, "said", 1.0 if role == "assistant" else 0.0)


def test_share_gpt_s_messages_have_weights_and_nulls_as_others() -> None:
    row = {"conversations": [sharegpt("human", "q", weight=None), sharegpt("gpt", "a", weight=0.5, role=None)]}
    assert MESSAGES.example(row) == Conversation((Turn("user", "q"), Turn("assistant", "a", 0.5)))


def test_either_list_may_have_either_shape() -> None:
    one = MESSAGES.example({"messages": [sharegpt("human", "q"), A]})
    assert one == MESSAGES.example({"conversations": [Q, sharegpt("gpt", "a")], "messages": None})


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_share_gpt_s_function_call_is_a_call(as_text: bool, several: bool) -> None:
    one: Any = {"name": "f", "arguments": {"x": 1}}
    value = [one, one] if several else one
    row = {"conversations": [
        sharegpt("human", "q"), sharegpt("function_call", json.dumps(value) if as_text else value, weight=0.5),
        sharegpt("observation", "1"), sharegpt("gpt", "a"),
    ]}  # fmt: skip
    call = {"type": "function", "function": one}
    assert MESSAGES.example(row).turns == (
        Turn("user", "q"),
        Turn("assistant", "", 0.5, {"tool_calls": [call, call] if several else [call]}),
        Turn("tool", "1"),
        Turn("assistant", "a", 1.0),
    )


@pytest.mark.parametrize(
    ("message", "fault", "kind"),
    [
        (sharegpt("bot", "x"),
         "message 2 is from 'bot'; allowed: human, user, gpt, assistant, system, tool, observation, "
         "function_response, function_call", ROLE),
        (sharegpt(["gpt"], "x"),
         "message 2 is from ['gpt']; allowed: human, user, gpt, assistant, system, tool, observation, "
         "function_response, function_call", ROLE),
        (sharegpt("gpt", None), "message 2 has null for content, not text", TYPE),
        (sharegpt("gpt", " "), "message 2 is an assistant turn that says nothing", EMPTY),
        (sharegpt("gpt", "x", text="y"), "message 2 has text, which this format does not read", KEY),
        (sharegpt("function_call", "f()"),
         "message 2 is a function_call that is not JSON: Expecting value: line 1 column 1 (char 0)", TYPE),
        (sharegpt("function_call", None), "message 2 has a tool call without a function's name", TYPE),
        (sharegpt("function_call", "3"), "message 2 has a tool call without a function's name", TYPE),
        ({"from": "gpt", "role": "assistant", "content": "a"}, "message 2 has from, which this format does not read",
         KEY),
    ],
)  # fmt: skip
def test_share_gpt_s_messages_say_what_is_wrong(message: Any, fault: str, kind: str) -> None:
    assert refused(MESSAGES, {"conversations": [sharegpt("human", "q"), message]}) == (fault, kind)


def test_an_instruction_is_a_question_with_its_answer() -> None:
    assert INSTRUCTION.example({"instruction": "add", "output": " 2\n"}) == Conversation(
        (Turn("user", "add"), Turn("assistant", " 2\n", 1.0))
    )


@pytest.mark.parametrize(
    ("instruction", "given", "asked"),
    [
        ("add", "1 1", "add\n\n1 1"),
        ("add", "", "add"),
        ("add", None, "add"),
        ("", "1 1", "1 1"),
        (" a ", "b", " a \n\nb"),
    ],
)
def test_an_input_follows_its_instruction_after_a_blank_line(instruction: str, given: Any, asked: str) -> None:
    made = INSTRUCTION.example({"instruction": instruction, "input": given, "output": "o"})
    assert made.turns[0] == Turn("user", asked)


def test_an_instruction_may_have_a_system_text_and_a_history() -> None:
    row = {"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"], ["", "b"]]}
    assert INSTRUCTION.example(row) == Conversation(
        (
            Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a", 1.0), Turn("user", ""),
            Turn("assistant", "b", 1.0), Turn("user", "i"), Turn("assistant", "o", 1.0),
        )
    )  # fmt: skip
    empty = INSTRUCTION.example({"instruction": "i", "output": "o", "system": "", "history": []})
    assert empty == INSTRUCTION.example({"instruction": "i", "output": "o", "system": None, "history": None})
    assert len(empty.turns) == 2


@pytest.mark.parametrize(
    ("row", "fault", "kind"),
    [
        ({"instruction": "i"}, "no column 'output' (columns: instruction)", COLUMNS),
        ({"output": "o", "x": 1}, "no column 'instruction' (columns: output, x)", COLUMNS),
        ({"instruction": None, "output": "o"}, "instruction is null, not text", TYPE),
        ({"instruction": "i", "output": 3}, "output is a number, not text", TYPE),
        ({"instruction": "i", "output": ""}, "output says nothing", EMPTY),
        ({"instruction": "i", "output": " \n"}, "output says nothing", EMPTY),
        ({"instruction": " ", "output": "o"}, "instruction says nothing", EMPTY),
        ({"instruction": "", "input": " ", "output": "o"}, "instruction says nothing", EMPTY),
        ({"instruction": "i", "input": ["x"], "output": "o"}, "input is a list, not text", TYPE),
        ({"instruction": "i", "system": 1.5, "output": "o"}, "system is a number, not text", TYPE),
        *(({"instruction": "i", "output": "o", "history": history},
           "history is not a list of [question, answer]", TYPE)
          for history in ("q", {"q": "a"}, ["qa"], [["q"]], [["q", "a", "b"]], [["q", None]], [["q", " "]],
                          [["q", "a"], 3])),
    ],
)  # fmt: skip
def test_instruction_says_what_is_wrong_with_a_row(row: Any, fault: str, kind: str) -> None:
    assert refused(INSTRUCTION, row) == (fault, kind)


def test_a_completion_is_learned_and_its_prompt_is_read() -> None:
    made = PROMPT.example({"prompt": "1 + 1 =", "completion": " 2"})
    assert made == Segments((Segment("1 + 1 ="), Segment(" 2", 1.0)), whole=True)


def test_a_completion_may_have_no_prompt() -> None:
    assert PROMPT.example({"prompt": "", "completion": "x"}) == Segments((Segment("x", 1.0),))


def test_of_lists_of_messages_the_completion_s_answers_alone_are_learned() -> None:
    row = {
        "prompt": [S, Q, said("assistant", "before", weight=2), Q],
        "completion": [A, said("user", "r"), said("assistant", "b", weight=0.5)],
        "tools": [TOOL],
    }
    assert PROMPT.example(row) == Conversation(
        (
            Turn("system", "s"), Turn("user", "q"), Turn("assistant", "before"), Turn("user", "q"),
            Turn("assistant", "a", 1.0), Turn("user", "r"), Turn("assistant", "b", 0.5),
        ),
        (TOOL,),
    )  # fmt: skip


def test_a_completion_may_begin_with_what_a_tool_said() -> None:
    call = said("assistant", None, **CALLS)
    made = PROMPT.example({"prompt": [Q, call], "completion": [T, A]})
    assert [(turn.role, turn.weight) for turn in made.turns] == [
        ("user", 0.0), ("assistant", 0.0), ("tool", 0.0), ("assistant", 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "fault", "kind"),
    [
        ({"prompt": "p"}, "no column 'completion' (columns: prompt)", COLUMNS),
        ({"completion": "c", "x": 1}, "no column 'prompt' (columns: completion, x)", COLUMNS),
        ({}, "no column 'prompt' (columns: none)", COLUMNS),
        ({"prompt": None, "completion": "c"}, "prompt is null, not text", TYPE),
        ({"prompt": {"role": "user"}, "completion": "c"}, "prompt is an object, not text", TYPE),
        ({"prompt": "p", "completion": 3}, "completion is a number, not text", TYPE),
        ({"prompt": "p", "completion": [A]}, "completion is a list, not text", TYPE),
        ({"prompt": "p", "completion": ""}, "completion is empty", EMPTY),
        ({"prompt": "p", "completion": "c", "tools": [TOOL]},
         "tools are written by the chat template, and the prompt is text, not messages", TYPE),
        ({"prompt": [Q]}, "no column 'completion' (columns: prompt)", COLUMNS),
        ({"prompt": [Q], "completion": "c"}, "completion is text, not a list of messages", TYPE),
        ({"prompt": [], "completion": [A]}, "prompt is empty", EMPTY),
        ({"prompt": [Q], "completion": []}, "completion is empty", EMPTY),
        ({"prompt": [Q], "completion": [said("assistant", "")]}, "message 1 is an assistant turn that says nothing",
         EMPTY),
        ({"prompt": [Q, A], "completion": [A]}, "message 3 is the assistant's like the one before it", ORDER),
        ({"prompt": [Q], "completion": [Q]}, "message 2 is the user's like the one before it", ORDER),
        ({"prompt": [A], "completion": [A]}, "message 1 is the assistant's, and no question comes before it", ORDER),
        ({"prompt": [Q], "completion": [S, A]}, "message 2 has the role system, which only the first may have",
         ORDER),
    ],
)  # fmt: skip
def test_prompt_completion_says_what_is_wrong_with_a_row(row: Any, fault: str, kind: str) -> None:
    assert refused(PROMPT, row) == (fault, kind)


def test_text_is_learned_whole_and_as_it_stands() -> None:
    assert TEXT.example({"text": " a\n", "id": 1}) == Segments((Segment(" a\n", 1.0),), whole=True)


@pytest.mark.parametrize(
    ("row", "fault", "kind"),
    [
        ({}, "no column 'text' (columns: none)", COLUMNS),
        ({"Text": "a"}, "no column 'text' (columns: Text)", COLUMNS),
        ({"text": None}, "text is null, not text", TYPE),
        ({"text": ["a"]}, "text is a list, not text", TYPE),
        ({"text": b"a"}, "text is bytes, not text", TYPE),
        ({"text": ""}, "text says nothing", EMPTY),
        ({"text": "\n\t "}, "text says nothing", EMPTY),
    ],
)
def test_text_says_what_is_wrong_with_a_row(row: Any, fault: str, kind: str) -> None:
    assert refused(TEXT, row) == (fault, kind)


def test_a_preference_is_two_answers_to_one_prompt() -> None:
    assert PREFERENCE.example({"prompt": "p", "chosen": "a", "rejected": "b"}) == Preference(
        Segments((Segment("p"), Segment("a", 1.0))), Segments((Segment("p"), Segment("b", 1.0)))
    )
    row = {"prompt": [Q, A, Q], "chosen": [said("assistant", "b")], "rejected": [said("assistant", "c")]}
    asked = (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "q"))
    assert PREFERENCE.example(row | {"tools": json.dumps([TOOL])}) == Preference(
        Conversation((*asked, Turn("assistant", "b", 1.0)), (TOOL,)),
        Conversation((*asked, Turn("assistant", "c", 1.0)), (TOOL,)),
    )


@pytest.mark.parametrize("nothing", [{}, {"prompt": None}])
def test_a_preference_without_a_prompt_is_two_conversations(nothing: Any) -> None:
    row = {"chosen": [Q, A], "rejected": [sharegpt("human", "q"), sharegpt("gpt", "b")], "tools": [TOOL]}
    assert PREFERENCE.example(row | nothing) == Preference(
        Conversation((Turn("user", "q"), Turn("assistant", "a", 1.0)), (TOOL,)),
        Conversation((Turn("user", "q"), Turn("assistant", "b", 1.0)), (TOOL,)),
    )


@pytest.mark.parametrize(
    ("row", "fault", "kind"),
    [
        ({"prompt": "p", "chosen": "a"}, "no column 'rejected' (columns: prompt, chosen)", COLUMNS),
        ({"rejected": [Q, A]}, "no column 'chosen' (columns: rejected)", COLUMNS),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same", "no preference"),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "chosen and rejected are the same", "no preference"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "chosen is empty", EMPTY),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected is null, not text", TYPE),
        ({"prompt": [Q], "chosen": [A], "rejected": "b"}, "rejected is text, not a list of messages", TYPE),
        ({"chosen": "a", "rejected": "b"}, "chosen is no list of messages, and there is no prompt", TYPE),
        ({"chosen": [Q, A], "rejected": "b"}, "rejected is no list of messages, and there is no prompt", TYPE),
        ({"chosen": [Q, A], "rejected": [Q]}, "rejected does not end with an answer", TYPE),
        ({"chosen": [A], "rejected": [Q, A]}, "message 1 is the assistant's, and no question comes before it", ORDER),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "tools": [TOOL]},
         "tools are written by the chat template, and the prompt is text, not messages", TYPE),
    ],
)  # fmt: skip
def test_preference_says_what_is_wrong_with_a_row(row: Any, fault: str, kind: str) -> None:
    assert refused(PREFERENCE, row) == (fault, kind)


def test_a_pair_belongs_together_or_has_a_score() -> None:
    assert PAIRS.example({"anchor": "a", "positive": "p"}) == Pair("a", "p", None)
    assert PAIRS.example({"sentence1": "a", "sentence2": "b", "score": 1}) == Pair("a", "b", 1.0)


@pytest.mark.parametrize(("score", "number"), [(0, 0.0), (-2.5, -2.5), ("0.5", 0.5), (" 1e2 ", 100.0)])
def test_a_score_is_a_number_or_a_csv_file_s_text_of_one(score: Any, number: float) -> None:
    made = PAIRS.example({"sentence1": "a", "sentence2": "b", "score": score})
    assert made == Pair("a", "b", number)
    assert isinstance(made.score, float)


@pytest.mark.parametrize(
    ("row", "fault", "kind"),
    [
        ({"anchor": "a"}, "no column 'positive' (columns: anchor)", COLUMNS),
        ({"anchor": " ", "positive": "p"}, "anchor says nothing", EMPTY),
        ({"anchor": "a", "positive": 3}, "positive is a number, not text", TYPE),
        ({"sentence1": "a", "score": 1}, "no column 'sentence2' (columns: sentence1, score)", COLUMNS),
        ({"sentence1": "a", "sentence2": "b"}, "no column 'score' (columns: sentence1, sentence2)", COLUMNS),
        ({"sentence1": "a", "sentence2": "", "score": 1}, "sentence2 says nothing", EMPTY),
        *(({"sentence1": "a", "sentence2": "b", "score": score}, fault, TYPE) for score, fault in (
            ("high", "score is 'high', not a number"),
            ("", "score is '', not a number"),
            (None, "score is null, not a finite number"),
            (True, "score is true or false, not a finite number"),
            ([1], "score is a list, not a finite number"),
            ("nan", "score is a number, not a finite number"),
            (float("inf"), "score is a number, not a finite number"),
            (TOO_LARGE, "score is a number, not a finite number"),
            (-TOO_LARGE, "score is a number, not a finite number"),
        )),
    ],
)  # fmt: skip
def test_pairs_say_what_is_wrong_with_a_row(row: Any, fault: str, kind: str) -> None:
    assert refused(PAIRS, row) == (fault, kind)


def test_a_triple_is_a_text_one_that_belongs_to_it_and_one_that_does_not() -> None:
    assert TRIPLES.example({"negative": "n", "positive": "p", "anchor": "a"}) == Triple("a", "p", "n")


@pytest.mark.parametrize(
    ("row", "fault", "kind"),
    [
        ({"anchor": "a", "positive": "p"}, "no column 'negative' (columns: anchor, positive)", COLUMNS),
        ({"anchor": "a", "positive": "p", "negative": None}, "negative is null, not text", TYPE),
        ({"anchor": "a", "positive": " ", "negative": "n"}, "positive says nothing", EMPTY),
        ({"anchor": ["a"], "positive": "p", "negative": "n"}, "anchor is a list, not text", TYPE),
    ],
)
def test_triples_say_what_is_wrong_with_a_row(row: Any, fault: str, kind: str) -> None:
    assert refused(TRIPLES, row) == (fault, kind)
