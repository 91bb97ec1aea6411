"""What is learned of a conversation: each assistant turn's text through its end-of-turn token, nothing else."""

from __future__ import annotations

import pytest

from peftctl.errors import UsageError
from peftctl.example import Conversation, RowFault, Segment, Turn
from peftctl.text import chat
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import TEMPLATES, Template, assistant, system, user

each_template = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)

CONTENTS = {
    "plain": "yes",
    "spaces around": "  yes  ",
    "newlines around": "\n\nyes\n\n",
    "tabs and inner blank lines": "a\t b\n\n\nc",
    "emoji": "👩‍👩‍👧‍👦 ok 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "CJK": "今日は、世界。",
    "right to left": "שלום",
    "combining": "e\u0301 n\u0303",
    "template syntax": "{{ messages }} {% endfor %} {# no #}",
    "HTML": "<b>&amp; \"quoted\" 'text'</b>",
    "a role word": "assistant",
    "the question over again": "is 3 odd?",
}
each_content = pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())


def rows(conversation: Conversation, template: str, learn: str = "assistant") -> list[tuple[Segment, ...]]:
    """The pieces of every row that the conversation becomes."""
    return [row.pieces for row in chat.segments(conversation, tiny.tokenizer(template), learn)]


def learned(conversation: Conversation, template: str) -> list[str]:
    """What is learned of a conversation that becomes one row."""
    (pieces,) = rows(conversation, template)
    return [piece.text for piece in pieces if piece.weight]


def refused(conversation: Conversation, template: str) -> RowFault:
    with pytest.raises(RowFault) as fault:
        rows(conversation, template)
    return fault.value


@each_template
@each_content
def test_the_learned_part_is_the_answer_and_its_end_of_turn(template: Template, content: str) -> None:
    conversation = kinds.chat(user("is 3 odd?"), assistant(content))
    assert learned(conversation, template.jinja) == [template.learned(content)]


@each_template
@each_content
def test_content_of_other_turns_does_not_move_the_learned_part(template: Template, content: str) -> None:
    conversation = kinds.chat(user(content), assistant("yes"), user(content), assistant("no"), user(content))
    assert learned(conversation, template.jinja) == [template.learned("yes"), template.learned("no")]


@each_template
def test_the_pieces_join_to_the_template_s_text(template: Template) -> None:
    turns = (user("  one\n"), assistant(" two "), user("three"), assistant("four\n"), user("five"))
    (pieces,) = rows(Conversation(turns), template.jinja)
    assert "".join(piece.text for piece in pieces) == "".join(template.write(turn) for turn in turns)


@each_template
def test_what_stands_before_a_learned_part_is_what_inference_shows(template: Template) -> None:
    turns = (user("one"), assistant("two"), user("three"), assistant("four"))
    tokenizer = tiny.tokenizer(template.jinja)
    (pieces,) = rows(Conversation(turns), template.jinja)
    asked = [index for index, piece in enumerate(pieces) if piece.weight]
    for index, turn in zip(asked, (1, 3), strict=True):
        shown = tokenizer.apply_chat_template(
            [{"role": t.role, "content": t.content} for t in turns[:turn]], tokenize=False, add_generation_prompt=True
        )
        assert "".join(piece.text for piece in pieces[:index]) == shown


def test_chatml_pieces_are_exactly_these() -> None:
    conversation = kinds.chat(system("be brief"), user("q"), assistant("a", 0.5), user("r"))
    (made,) = chat.segments(conversation, tiny.tokenizer())
    assert made.pieces == (
        Segment("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        Segment("a<|im_end|>", 0.5),
        Segment("\n<|im_start|>user\nr<|im_end|>\n"),
    )
    assert not made.whole


def test_the_turn_s_own_white_space_is_learned_and_the_template_s_after_it_is_not() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}> {{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant> {% endif %}"
    )
    assert learned(kinds.chat(user("q"), assistant(" a \n")), template) == [" a \n"]


@pytest.mark.parametrize(
    "content",
    ["<|im_end|>", "a<|im_end|>\n<|im_start|>user\nb", "<|im_start|>assistant\n", "<|im_start|>", "\n<|im_end|>\n"],
)
def test_markers_in_an_answer_are_text_of_the_answer(content: str) -> None:
    assert learned(kinds.chat(user("q"), assistant(content)), tiny.CHATML) == [f"{content}<|im_end|>"]
    several = kinds.chat(user("q"), assistant(content), user("r"), assistant("b"))
    assert learned(several, tiny.CHATML) == [f"{content}<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize(
    "content", ["<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>", "<|im_start|>assistant\n", "[/INST] yes</s>"]
)
@each_template
def test_markers_in_a_question_are_never_learned(template: Template, content: str) -> None:
    assert learned(kinds.chat(user(content), assistant("no")), template.jinja) == [template.learned("no")]


def test_white_space_that_the_template_trims_is_not_found_again_behind_the_end_of_turn() -> None:
    """The answer, trimmed, and the template's end of turn and newline hold the untrimmed answer once more."""
    conversation = kinds.chat(user("q"), assistant("<end_of_turn>\n"))
    assert learned(conversation, kinds.GEMMA) == ["<end_of_turn><end_of_turn>"]


def test_a_turn_of_weight_zero_is_read_and_not_learned() -> None:
    conversation = kinds.chat(user("q"), assistant("bad", 0.0), user("r"), assistant("good"))
    assert learned(conversation, tiny.CHATML) == ["good<|im_end|>"]


def test_a_turn_that_no_generation_prompt_announces_cannot_be_learned() -> None:
    with pytest.raises(RowFault, match="the chat template writes message 2 differently"):
        learned(kinds.chat(system("s"), Turn("user", "q", 1.0), assistant("a")), kinds.SPACED)


def test_a_conversation_without_an_answer_has_nothing_learned() -> None:
    assert learned(kinds.chat(system("s"), user("q")), tiny.CHATML) == []


def test_equal_answers_are_each_found_in_their_own_place() -> None:
    turns = [turn for _ in range(5) for turn in (user("yes"), assistant("yes"))]
    (pieces,) = rows(Conversation(tuple(turns)), tiny.CHATML)
    assert [p.text for p in pieces if p.weight] == ["yes<|im_end|>"] * 5
    assert len(pieces) == 11


@pytest.mark.parametrize("template", [t for t in TEMPLATES if not t.system], ids=lambda template: template.name)
def test_a_system_turn_is_refused_with_the_template_s_own_complaint(template: Template) -> None:
    complaint = {
        "gemma": "System role not supported",
        "mistral": "Conversation roles must alternate user/assistant/user/assistant/...",
    }[template.name]
    fault = refused(kinds.chat(system("s"), user("q"), assistant("a")), template.jinja)
    assert str(fault) == f"the chat template refuses these messages: {complaint}"
    assert fault.kind == "refused by the chat template"


THINKING = kinds.chat(user("q"), assistant("<think>hm</think>a"), user("r"), assistant("<think>so</think>b", 0.5))
FIRST = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
# The second question, after the first answer without what was thought.
SECOND = f"{FIRST}a<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_rewrites_history_gets_a_row_for_each_learned_turn() -> None:
    assert rows(THINKING, kinds.FORGETFUL) == [
        (Segment(FIRST), Segment("<think>hm</think>a<|im_end|>", 1.0), Segment("\n")),
        (Segment(SECOND), Segment("<think>so</think>b<|im_end|>", 0.5), Segment("\n")),
    ]


def test_each_of_these_rows_begins_as_inference_shows_its_turn() -> None:
    tokenizer = tiny.tokenizer(kinds.FORGETFUL)
    for (shown, *_), index in zip(rows(THINKING, kinds.FORGETFUL), (1, 3), strict=True):
        assert shown.text == chat.render(THINKING.turns[:index], tokenizer, generation_prompt=True)


def test_the_row_of_a_rewritten_answer_ends_with_it_also_where_a_question_follows() -> None:
    conversation = kinds.chat(user("q"), assistant("<think>hm</think>a"), user("r"))
    first = (Segment(FIRST), Segment("<think>hm</think>a<|im_end|>", 1.0), Segment("\n"))
    assert rows(conversation, kinds.FORGETFUL) == [first]


def test_of_a_rewritten_history_the_last_turn_alone_can_be_learned() -> None:
    second = (Segment(SECOND), Segment("<think>so</think>b<|im_end|>", 0.5), Segment("\n"))
    assert rows(THINKING, kinds.FORGETFUL, "last") == [second]


def test_where_nothing_learned_is_rewritten_there_is_one_row() -> None:
    last = kinds.chat(user("q"), assistant("a"), user("r"), assistant("<think>hm</think>b"))
    assert learned(last, kinds.FORGETFUL) == ["a<|im_end|>", "<think>hm</think>b<|im_end|>"]
    unlearned = kinds.chat(user("q"), assistant("<think>hm</think>a", 0.0), user("r"), assistant("b"))
    assert learned(unlearned, kinds.FORGETFUL) == ["b<|im_end|>"]


def test_an_end_of_turn_that_only_the_last_turn_has_makes_a_row_for_each_turn() -> None:
    template = tiny.CHATML.replace(
        "<|im_end|>\n", "{% if message['role'] == 'user' or loop.last %}<|im_end|>{% endif %}\n"
    )
    assert learned(kinds.chat(user("q"), assistant("a")), template) == ["a<|im_end|>"]
    several = rows(kinds.chat(user("q"), assistant("a"), user("r"), assistant("b")), template)
    assert [[piece.text for piece in pieces if piece.weight] for pieces in several] == [
        ["a<|im_end|>"], ["b<|im_end|>"],
    ]  # fmt: skip
    assert several[1][0].text == (
        "<|im_start|>user\nq<|im_end|><|im_start|>assistant\na<|im_start|>user\nr<|im_end|><|im_start|>assistant\n"
    )


@pytest.mark.parametrize("before", [(), (user("q"), assistant("a"))], ids=["one turn", "two turns"])
def test_a_generation_prompt_that_no_history_has_is_refused(before: tuple[Turn, ...]) -> None:
    """As with R1's template, which opens the thoughts when generating and leaves them out of every history."""
    template = kinds.FORGETFUL.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"
    )
    fault = refused(kinds.chat(*before, user("r"), assistant("b")), template)
    assert str(fault) == (
        "the chat template writes message 2 differently when generating than in a history, "
        "so no mask for it would match inference"
    )
    assert fault.kind == "refused by the chat template"


def test_a_row_of_which_one_turn_is_refused_is_refused_whole() -> None:
    template = kinds.FORGETFUL.replace(
        "{% if add_generation_prompt %}", "{% if add_generation_prompt %}{% if messages|length > 2 %}!{% endif %}"
    )
    assert str(refused(THINKING, template)).startswith("the chat template writes message 4 differently")
    assert len(rows(kinds.chat(*THINKING.turns[:2]), template)) == 1


def test_a_template_that_alters_the_answer_is_refused() -> None:
    template = tiny.CHATML.replace("message['content']", "message['content'] | upper")
    fault = refused(kinds.chat(user("q"), assistant("yes")), template)
    assert str(fault) == "the chat template does not write the text of message 2 as it stands"
    assert fault.kind == "not written by the chat template"


def test_what_the_template_puts_between_prompt_and_answer_is_learned_too() -> None:
    template = tiny.CHATML.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}",
    )
    assert learned(kinds.chat(user("q"), assistant("a")), template) == ["<think></think>a<|im_end|>"]


def test_a_conversation_that_an_assistant_opens_cannot_be_learned() -> None:
    fault = refused(kinds.chat(assistant("hello"), user("q")), tiny.CHATML)
    assert str(fault) == "message 1 is the assistant's, and no prompt comes before it"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] + 3 }}",  # TypeError
        "{{ 1 / 0 }}",  # ZeroDivisionError
        "{{ messages[7]['content'] }}",  # UndefinedError
        "{{ messages[0]['content'] | dictsort }}",  # AttributeError
        "{{ [1][7:3:0] }}",  # ValueError
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",  # RecursionError
        "{{ messages.__class__.__mro__ }}",  # SecurityError: the sandbox's
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_s_own_error_is_a_fault_of_the_row(template: str) -> None:
    fault = refused(kinds.chat(user("q"), assistant("a")), template)
    assert str(fault).startswith("the chat template refuses these messages: ")
    assert fault.kind == "refused by the chat template"


def test_without_a_template_messages_cannot_be_written() -> None:
    with pytest.raises(UsageError) as missing:
        chat.render((user("q"),), tiny.tokenizer(None), generation_prompt=False)
    assert missing.value.message == "model.name: its tokenizer has no chat template, so messages cannot be written"
    assert "data.template" in missing.value.hint


def test_rendering_gives_the_template_s_text_with_and_without_the_prompt() -> None:
    turns = (system("s"), user("q"))
    said = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
    tokenizer = tiny.tokenizer()
    assert chat.render(turns, tokenizer, generation_prompt=False) == said
    assert chat.render(turns, tokenizer, generation_prompt=True) == said + "<|im_start|>assistant\n"


def test_last_learns_the_last_turn_that_has_a_weight() -> None:
    turns = kinds.chat(user("q"), assistant("a"), user("r"), assistant("b", 0.5), user("s"), assistant("c", 0.0))
    assert rows(turns, tiny.CHATML, "last") == [
        (
            Segment(SECOND),
            Segment("b<|im_end|>", 0.5),
            Segment("\n<|im_start|>user\ns<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"),
        )
    ]
    assert rows(kinds.chat(user("q"), assistant("a", 0.0)), tiny.CHATML, "last") == [
        (Segment(f"{FIRST}a<|im_end|>\n"),)
    ]


def test_all_learns_the_text_as_the_template_writes_it_with_what_it_leaves_out_left_out() -> None:
    assert rows(THINKING, kinds.FORGETFUL, "all") == [
        # An answer with a weight of its own keeps it.
        (Segment(SECOND, 1.0), Segment("<think>so</think>b<|im_end|>", 0.5), Segment("\n", 1.0)),
    ]
    (made,) = chat.segments(THINKING, tiny.tokenizer(kinds.FORGETFUL), "all")
    assert not made.whole


CALL = {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
# ChatML that writes tools, reasoning and calls too.
OPENED = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }}{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_call_is_learned_through_its_end_of_turn_and_no_white_space_after_it() -> None:
    conversation = kinds.chat(user("q"), Turn("assistant", "", 1.0, CALL), Turn("tool", "1"), assistant("one"))
    assert rows(conversation, OPENED) == [
        (
            Segment(FIRST),
            Segment('<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>', 1.0),
            Segment("\n<|im_start|>tool\n1<|im_end|>\n<|im_start|>assistant\n"),
            Segment("one<|im_end|>", 1.0),
            Segment("\n"),
        )
    ]


@pytest.mark.parametrize("content", ["", "Let me see."])
def test_text_beside_a_call_is_learned_with_it(content: str) -> None:
    conversation = kinds.chat(user("q"), Turn("assistant", content, 1.0, CALL))
    assert learned(conversation, OPENED) == [
        f'{content}<call>{{"name": "add", "arguments": {{"a": 1}}}}</call><|im_end|>'
    ]


def test_a_call_whose_name_is_in_the_thoughts_alone_is_missed() -> None:
    template = OPENED.replace("message.tool_calls or []", "[]")
    fields = CALL | {"reasoning_content": "I add"}
    fault = refused(kinds.chat(user("q"), Turn("assistant", "a", 1.0, fields)), template)
    assert str(fault) == "the chat template does not write the call of add in message 2"
    assert learned(kinds.chat(user("q"), Turn("assistant", "a", 1.0, fields)), OPENED) == [
        '<think>I add</think>a<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>'
    ]


def test_reasoning_is_learned_with_the_answer_also_where_it_holds_the_answer_s_words() -> None:
    conversation = kinds.chat(user("q"), Turn("assistant", "yes", 1.0, {"reasoning_content": "yes, yes"}))
    assert learned(conversation, OPENED) == ["<think>yes, yes</think>yes<|im_end|>"]


@pytest.mark.parametrize(
    ("turns", "tools", "reason"),
    [
        ((user("q"), Turn("assistant", "", 1.0, CALL)), (),
         "the chat template does not write the call of add in message 2"),
        ((user("q"), Turn("assistant", "a", 1.0, {"reasoning_content": "hm"})), (),
         "the chat template does not write the reasoning_content of message 2"),
        ((user("q"), Turn("assistant", "a", 1.0, {"thinking": "hm"})), (),
         "the chat template does not write the thinking of message 2"),
        ((user("q"), Turn("assistant", "Let me add.", 1.0, CALL)), (),
         "the chat template does not write the call of add in message 2"),
        ((user("q"), Turn("assistant", "ah, yes", 1.0, {"reasoning_content": "ah"})), (),
         "the chat template does not write the reasoning_content of message 2"),
        ((user("q"), assistant("a")), (TOOL,), "the chat template does not write the row's tools (add)"),
        ((user("add one"), assistant("a")), (TOOL,), "the chat template does not write the row's tools (add)"),
        ((user("q"), assistant("a")), ({"name": "add"},), "the chat template does not write the row's tools (add)"),
        ((user("q"), assistant("a")), ({"function": 3},), "the chat template does not write the row's tools (None)"),
    ],
)  # fmt: skip
def test_what_the_template_leaves_out_of_a_row_is_no_silent_loss(turns: object, tools: object, reason: str) -> None:
    fault = refused(Conversation(turns, tools), tiny.CHATML)  # type: ignore[arg-type]
    assert (str(fault), fault.kind) == (reason, "not written by the chat template")


@pytest.mark.parametrize("learn", ["assistant", "all"])
def test_what_a_tool_said_must_be_written(learn: str) -> None:
    silent = tiny.CHATML.replace("{{ message['content'] }}", "{{ message['content'] if message['role'] != 'tool' }}")
    turns = (user("q"), assistant("<call>"), Turn("tool", "12 °C"), assistant("cold"))
    with pytest.raises(RowFault) as fault:
        rows(Conversation(turns), silent, learn)
    assert str(fault.value) == "the chat template does not write what the tool of message 3 said"


def test_what_a_tool_said_may_be_written_as_json() -> None:
    """Llama 3.1's template does so, with quotes and line breaks escaped."""
    template = tiny.CHATML.replace(
        "{{ message['content'] }}",
        "{{ message['content'] | tojson if message['role'] == 'tool' else message['content'] }}",
    )
    turns = (user("q"), assistant("<call>"), Turn("tool", '{"t": "12 °C"}\n'), assistant("cold"))
    (pieces,) = rows(Conversation(turns), template)
    assert '"{\\"t\\": \\"12 °C\\"}\\n"<|im_end|>' in pieces[2].text


def test_a_template_may_refuse_messages_without_their_tools() -> None:
    template = OPENED.replace("{% endif %}", "{% else %}{{ raise_exception('no tools') }}{% endif %}", 1)
    assert len(rows(Conversation((user("q"), assistant("a")), (TOOL,)), template)) == 1


def test_tools_stand_before_every_prompt() -> None:
    (pieces,) = rows(Conversation((user("q"), assistant("a")), (TOOL,)), OPENED)
    assert pieces[0].text == f"<|im_start|>system\nadd<|im_end|>\n{FIRST}"
