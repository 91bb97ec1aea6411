"""Whatever is said in whatever order, under every template and tokenizer: just the answers are learned."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from peftctl.example import Conversation, RowFault, Segment, Segments, Turn
from peftctl.text import chat, tokens
from tests.unit import kinds
from tests.unit.kinds import TEMPLATES, Template

MARKERS = ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<end_of_turn>", "[INST]", "[/INST]", "</s>", "assistant", "yes"]
WORDS = ["\nyes", ": yes", "assistant", " yes", "yes", "\n\n", "  ", ">y", "<|", "|>"]

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
content = st.lists(st.one_of(anything, st.sampled_from([*MARKERS, " ", "\n", "🙂", "日本", "é"])), max_size=4).map(
    "".join
)
answer = content.filter(lambda text: text.strip() != "")


@cache
def lossless(kind: int, template: str | None) -> Any:
    """Tokenizers that give every text back as it was."""
    if kind == 0:
        return kinds.byte_level(template)
    if kind == 1:
        return kinds.byte_level(template, WORDS)
    if kind == 2:
        return kinds.byte_level(template, WORDS, trim_offsets=True)
    return kinds.byte_level(template, WORDS, trim_offsets=True, regex=True)


@cache
def lossy(kind: int, template: str | None) -> Any:
    """Tokenizers that put spaces where there are none, or know only some letters."""
    if kind < 3:
        return kinds.metaspace(template, ("always", "first", "never")[kind])
    if kind == 3:
        return kinds.wordpiece(template)
    return kinds.sentencepiece(template, prefix=kind == 4, begins=True)


@st.composite
def conversations(draw: st.DrawFn, template: Template) -> Conversation:
    """Turns that the template takes, the first of them not an assistant's."""
    turns: list[Turn] = []
    if template.system and draw(st.booleans()):
        turns.append(kinds.system(draw(content)))
    for _ in range(draw(st.integers(1, 3))):
        turns.append(kinds.user(draw(content)))
        turns.append(kinds.assistant(draw(answer), draw(st.sampled_from([1.0, 1.0, 0.5, 0.0]))))
    if draw(st.booleans()):
        turns.append(kinds.user(draw(content)))
    return Conversation(tuple(turns))


templates = st.sampled_from(TEMPLATES)


@given(st.data(), templates, st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_labels_are_the_ids_of_the_answers_and_their_ends_and_of_nothing_else(
    data: st.DataObject, template: Template, kind: int
) -> None:
    conversation = data.draw(conversations(template))
    tokenizer = lossless(kind, template.jinja)
    encoded = tokens.encode(kinds.only(chat.segments(conversation, tokenizer)), tokenizer)

    assert kinds.decode(tokenizer, encoded.ids) == "".join(template.write(turn) for turn in conversation.turns)
    wanted = [(template.learned(t.content), t.weight) for t in conversation.turns if t.role == "assistant" and t.weight]
    assert kinds.learned_texts(encoded, tokenizer) == [text for text, _ in wanted]
    runs = [weight for index, weight in enumerate(encoded.weights) if weight and not encoded.weights[index - 1]]
    assert runs == [weight for _, weight in wanted]
    assert set(encoded.weights) <= {0.0, 0.5, 1.0}


@given(st.data(), templates, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_row_that_a_tokenizer_cannot_write_is_refused_and_never_learned_wrong(
    data: st.DataObject, template: Template, kind: int
) -> None:
    conversation = data.draw(conversations(template))
    tokenizer = lossy(kind, template.jinja)
    try:
        encoded = tokens.encode(kinds.only(chat.segments(conversation, tokenizer)), tokenizer)
    except RowFault:
        return
    wanted = [template.learned(t.content) for t in conversation.turns if t.role == "assistant" and t.weight]
    assert kinds.learned_texts(encoded, tokenizer) == wanted


@given(st.data(), st.sampled_from([t for t in TEMPLATES if t.name in ("chatml", "llama3", "gemma")]))
@settings(max_examples=100, deadline=None)
def test_what_is_shown_before_an_answer_is_tokenised_as_inference_does(data: st.DataObject, template: Template) -> None:
    """Where a special token or a newline ends the prompt, its ids in training are those of the prompt alone."""
    conversation = data.draw(conversations(template))
    tokenizer = lossless(0, template.jinja)
    encoded = tokens.encode(kinds.only(chat.segments(conversation, tokenizer)), tokenizer)
    for index, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            shown = chat.render(conversation.turns[:index], tokenizer, generation_prompt=True)
            ids = tokens.prompt_ids(shown, tokenizer, whole=False)
            assert list(encoded.ids[: len(ids)]) == ids
            assert (encoded.weights[len(ids)] != 0) == (turn.weight != 0)


thoughts = st.text("abc \n", min_size=1, max_size=6).filter(lambda text: text.strip() != "")


@st.composite
def thoughtful(draw: st.DrawFn) -> Conversation:
    """Turns whose answers may begin with thoughts, which FORGETFUL leaves out of all but the last turn."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 4))):
        thought = f"<think>{draw(thoughts)}</think>" if draw(st.booleans()) else ""
        said = thought + draw(st.text("xyz", min_size=1, max_size=4))
        turns += [kinds.user(draw(content)), kinds.assistant(said, draw(st.sampled_from([1.0, 0.5, 0.0])))]
    if draw(st.booleans()):
        turns.append(kinds.user(draw(content)))
    return Conversation(tuple(turns))


@given(thoughtful(), st.sampled_from(["assistant", "last"]))
@settings(max_examples=200, deadline=None)
def test_under_a_template_that_rewrites_history_every_learned_turn_follows_what_inference_shows(
    conversation: Conversation, learn: str
) -> None:
    tokenizer = lossless(0, kinds.FORGETFUL)
    rows = [tokens.encode(row, tokenizer) for row in chat.segments(conversation, tokenizer, learn)]
    found: list[tuple[tuple[int, ...], str, float]] = []
    for row in rows:
        texts = iter(kinds.learned_texts(row, tokenizer))
        for at, (before, weight) in enumerate(pairwise(row.weights), start=1):
            if weight and not before:
                found.append((row.ids[:at], next(texts), weight))
    wanted: list[tuple[tuple[int, ...], str, float]] = []
    for index, turn in enumerate(conversation.turns):
        if turn.weight:
            shown = chat.render(conversation.turns[:index], tokenizer, generation_prompt=True)
            ids = tuple(tokens.prompt_ids(shown, tokenizer, whole=False))
            wanted.append((ids, f"{turn.content}<|im_end|>", turn.weight))
    assert found == (wanted[-1:] if learn == "last" else wanted)


pieces = st.lists(
    st.tuples(st.one_of(content, st.sampled_from(WORDS)).filter(bool), st.sampled_from([0.0, 0.0, 1.0, 2.0])),
    min_size=1,
    max_size=5,
)


@given(pieces, st.integers(0, 3), st.booleans())
@settings(max_examples=300, deadline=None)
def test_text_in_pieces_keeps_each_piece_s_weight_over_just_its_bytes(
    made: list[tuple[str, float]], kind: int, whole: bool
) -> None:
    tokenizer = lossless(kind, None)
    encoded = tokens.encode(Segments(tuple(Segment(*piece) for piece in made), whole=whole), tokenizer)
    ids, weights = encoded.ids, encoded.weights
    if whole:
        assert ids[-1] == tokenizer.eos_token_id
        assert weights[-1] == made[-1][1]
        ids, weights = ids[:-1], weights[:-1]

    # Byte-level tokens are runs of bytes (or a special token's text), so weights can be counted byte by byte.
    by_byte: list[float] = []
    for token, weight in zip(ids, weights, strict=True):
        name = tokenizer.convert_ids_to_tokens(token)
        by_byte += [weight] * len(name)  # one letter of a byte-level token stands for one byte
    assert by_byte == [weight for text, weight in made for _ in text.encode()]
    assert kinds.decode(tokenizer, ids) == "".join(text for text, _ in made)
