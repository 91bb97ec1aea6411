"""Text to ids: weights where something is learned, and learned ids that decode to exactly the learned text."""

from __future__ import annotations

from typing import Any

import pytest

from peftctl.example import Conversation, RowFault, Segment, Segments
from peftctl.text import chat, tokens
from peftctl.text.tokens import Encoded
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import TEMPLATES, Template, assistant, user

CROSSING = ["\na", "\nye", ": y", ": yes", " yes", "?<", "on", "ne"]

LOSSLESS = {
    "bytes": lambda template: kinds.byte_level(template),
    "merges across boundaries": lambda template: kinds.byte_level(template, CROSSING),
    "trimmed offsets": lambda template: kinds.byte_level(template, CROSSING, trim_offsets=True),
    "trimmed offsets and words": lambda template: kinds.byte_level(template, CROSSING, trim_offsets=True, regex=True),
    "sentencepiece": lambda template: kinds.sentencepiece(template, prefix=False),
}
each_lossless = pytest.mark.parametrize("make", LOSSLESS.values(), ids=LOSSLESS.keys())
each_template = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)


@each_template
@each_lossless
@pytest.mark.parametrize("answer", ["yes", " yes", "yes ", "\n yes\n", "a🙂b", "是的", "é", "<", "<|end|>"])
def test_learned_ids_decode_to_the_answer_and_its_end(template: Template, make: Any, answer: str) -> None:
    tokenizer = make(template.jinja)
    turns = (user("one?"), assistant(answer), user(" two\n"), assistant("no"), user("so"))
    encoded = tokens.encode(chat.segments(Conversation(turns), tokenizer)[0], tokenizer)

    assert kinds.learned_texts(encoded, tokenizer) == [template.learned(answer), template.learned("no")]
    assert kinds.decode(tokenizer, encoded.ids) == "".join(template.write(turn) for turn in turns)
    assert len(encoded.ids) == len(encoded.weights)


def test_text_is_tokenised_as_one_where_the_boundary_is_clean() -> None:
    """A merge within one piece is used; the ids are those of the joined text."""
    tokenizer = kinds.byte_level(None, ["on", "ye"])
    encoded = tokens.encode(Segments((Segment("one "), Segment("yes", 1.0)), whole=False), tokenizer)
    assert list(encoded.ids) == tokenizer("one yes", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["on", "e", "Ġ", "ye", "s"]
    assert encoded.weights == (0.0, 0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("trim_offsets", [None, False, True])
def test_a_merge_over_the_boundary_makes_the_pieces_tokenised_apart(trim_offsets: bool | None) -> None:
    tokenizer = kinds.byte_level(None, [" ye"], trim_offsets=trim_offsets)
    encoded = tokens.encode(Segments((Segment("so "), Segment("yes", 1.0)), whole=False), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["s", "o", "Ġ", "y", "e", "s"]
    assert encoded.weights == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("trim_offsets", [None, False, True])
def test_a_space_that_is_learned_stays_in_the_token_that_holds_it(trim_offsets: bool | None) -> None:
    tokenizer = kinds.byte_level(None, [" ye"], trim_offsets=trim_offsets)
    encoded = tokens.encode(Segments((Segment("so"), Segment(" yes", 1.0)), whole=False), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["s", "o", "Ġye", "s"]
    assert encoded.weights == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("trim_offsets", [None, True])
def test_a_merge_over_the_end_of_a_learned_piece_is_undone(trim_offsets: bool | None) -> None:
    tokenizer = kinds.byte_level(None, [" n"], trim_offsets=trim_offsets)
    pieces = (Segment("q"), Segment("yes ", 1.0), Segment("no"))
    encoded = tokens.encode(Segments(pieces, whole=False), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["q", "y", "e", "s", "Ġ", "n", "o"]
    assert encoded.weights == (0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("trim_offsets", [None, True])
def test_of_equal_tokens_side_by_side_the_learned_one_is_the_one_in_its_place(trim_offsets: bool | None) -> None:
    """Trimmed offsets of a token of spaces are empty, at its end: it must not be taken for the next piece's."""
    tokenizer = kinds.byte_level(None, ["  "], trim_offsets=trim_offsets)
    pieces = (Segment("  "), Segment("  ", 1.0), Segment("\n"))
    encoded = tokens.encode(Segments(pieces, whole=False), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["ĠĠ", "ĠĠ", "Ċ"]
    assert encoded.weights == (0.0, 1.0, 0.0)


def test_each_piece_keeps_its_weight() -> None:
    pieces = (Segment("a", 0.25), Segment("bc", 2.0), Segment("d"), Segment("ef", 1.0))
    encoded = tokens.encode(Segments(pieces, whole=False), kinds.byte_level())
    assert encoded.weights == (0.25, 2.0, 2.0, 0.0, 1.0, 1.0)


def test_neighbours_of_one_weight_are_learned_as_one() -> None:
    tokenizer = kinds.byte_level()
    pieces = (Segment("a"), Segment("b", 1.0), Segment("c", 1.0), Segment("d"))
    assert tokens.encode(Segments(pieces, whole=False), tokenizer).weights == (0.0, 1.0, 1.0, 0.0)


def test_a_character_of_several_tokens_is_learned_whole() -> None:
    tokenizer = kinds.byte_level()
    encoded = tokens.encode(Segments((Segment("é"), Segment("🙂", 1.0), Segment("é")), whole=False), tokenizer)
    assert encoded.weights == (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)


def test_whole_text_ends_with_the_end_of_text_learned() -> None:
    tokenizer = kinds.byte_level()
    encoded = tokens.encode(Segments((Segment("ab"), Segment("c", 0.5))), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["a", "b", "c", "<|end|>"]
    assert encoded.weights == (0.0, 0.0, 0.5, 0.5)
    assert encoded.supervised == 2


def test_whole_text_begins_as_the_tokenizer_begins_text() -> None:
    tokenizer = kinds.sentencepiece(None, prefix=False, begins=True)
    encoded = tokens.encode(Segments((Segment("a"), Segment("b", 1.0))), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["<s>", "a", "b", "</s>"]
    assert encoded.weights == (0.0, 0.0, 1.0, 1.0)


def test_a_begin_that_the_tokenizer_does_not_put_is_not_put() -> None:
    tokenizer = kinds.sentencepiece(None, prefix=False, begins=False)
    encoded = tokens.encode(Segments((Segment("a"), Segment("b", 1.0))), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["a", "b", "</s>"]


def test_a_rendered_conversation_gets_no_second_begin_or_end() -> None:
    tokenizer = kinds.sentencepiece("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}", prefix=False)
    bracketed = kinds.sentencepiece(tokenizer.chat_template, prefix=False, begins=True)
    made = chat.segments(Conversation((user("q"), assistant("a"))), bracketed)[0]
    ids = tokens.encode(made, bracketed).ids
    assert bracketed.convert_ids_to_tokens(ids) == ["<s>", "q", "</s>", "<s>", "a", "</s>"]


def test_a_prompt_has_the_ids_that_training_saw_before_the_answer() -> None:
    tokenizer = kinds.sentencepiece(None, prefix=False, begins=True)
    encoded = tokens.encode(Segments((Segment("so then"), Segment(" yes", 1.0))), tokenizer)
    shown = tokens.prompt_ids("so then", tokenizer, whole=True)
    assert shown == list(encoded.ids[: len(shown)])
    assert encoded.weights[len(shown)] == 1.0
    assert tokens.prompt_ids("so then", tokenizer, whole=False) == shown[1:]


def test_a_tokenizer_without_an_end_of_text_cannot_learn_plain_text() -> None:
    tokenizer = kinds.byte_level()
    tokenizer.eos_token = None
    with pytest.raises(RowFault) as refused:
        tokens.encode(Segments((Segment("a"), Segment("b", 1.0))), tokenizer)
    assert str(refused.value) == "the tokenizer has no end-of-text token to learn to stop with"
    assert tokens.encode(Segments((Segment("a"), Segment("b", 1.0)), whole=False), tokenizer).weights == (0.0, 1.0)


@pytest.mark.parametrize("answer", ["Yes", "café", "a  b", "two words", "日本 ok?"])
def test_learned_text_that_the_tokenizer_does_not_give_back_is_refused(answer: str) -> None:
    tokenizer = kinds.wordpiece()
    with pytest.raises(RowFault) as refused:
        tokens.encode(Segments((Segment("is it? "), Segment(answer, 1.0)), whole=False), tokenizer)
    assert str(refused.value) == "the tokenizer does not give the learned text back as it stands"


def test_text_that_is_only_read_may_be_altered_by_the_tokenizer() -> None:
    tokenizer = kinds.wordpiece()
    encoded = tokens.encode(Segments((Segment("Is It"), Segment(" yes", 1.0)), whole=False), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["i", "##s", "i", "##t", "y", "##e", "##s"]
    assert encoded.weights == (0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)


def test_letters_unknown_to_the_tokenizer_are_refused_where_learned() -> None:
    tokenizer = kinds.metaspace(scheme="never")
    assert tokens.encode(Segments((Segment("是"), Segment("yes", 1.0)), whole=False), tokenizer).weights[-3:] == (
        1.0,
        1.0,
        1.0,
    )
    with pytest.raises(RowFault, match="does not give the learned text back"):
        tokens.encode(Segments((Segment("is it"), Segment("是", 1.0)), whole=False), tokenizer)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@each_template
def test_a_space_that_a_tokenizer_puts_before_text_is_never_learned(scheme: str, template: Template) -> None:
    tokenizer = kinds.metaspace(template.jinja, scheme)
    made = chat.segments(Conversation((user("so"), assistant("yes"))), tokenizer)[0]
    try:
        encoded = tokens.encode(made, tokenizer)
    except RowFault:
        return
    assert kinds.learned_texts(encoded, tokenizer) == [template.learned("yes")]


def test_llama_2_s_kind_of_tokenizer_learns_plain_answers() -> None:
    tokenizer = kinds.sentencepiece(prefix=True, begins=True)
    encoded = tokens.encode(Segments((Segment("is it?"), Segment(" yes", 1.0))), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids)[-4:] == ["▁y", "e", "s", "</s>"]
    assert encoded.weights[-4:] == (1.0, 1.0, 1.0, 1.0)
    assert not any(encoded.weights[:-4])


def test_the_first_token_is_no_target() -> None:
    assert Encoded((5,), (1.0,)).supervised == 0
    assert Encoded((5, 6, 7), (1.0, 0.0, 2.0)).supervised == 1
    assert len(Encoded((5, 6, 7), (1.0, 0.0, 2.0))) == 3


def test_no_text_is_no_ids() -> None:
    assert tokens.encode(Segments((), whole=False), kinds.byte_level()) == Encoded((), ())


def test_an_empty_piece_between_learned_ones_changes_nothing() -> None:
    tokenizer = tiny.tokenizer(None)
    with_it = Segments((Segment("a"), Segment("b", 1.0), Segment(""), Segment("c", 1.0)), whole=False)
    without = Segments((Segment("a"), Segment("b", 1.0), Segment("c", 1.0)), whole=False)
    assert tokens.encode(with_it, tokenizer) == tokens.encode(without, tokenizer)


def test_bytes_say_where_parts_end_as_offsets_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftctl.text import byte_level

    tokenizer = kinds.byte_level((("o", "n"), ("Ġ", "y"), ("e", "s")))
    rows = [
        Segments((Segment("one "), Segment("yes", 1.0)), whole=False),
        Segments((Segment("one"), Segment(" yes", 1.0), Segment("<|im_end|>")), whole=False),
        Segments((Segment("é🙂"), Segment("日本", 0.5), Segment("ñ")), whole=False),
        Segments((Segment("", 1.0), Segment("a", 1.0)), whole=False),
    ]
    assert byte_level.lengths(tokenizer) is not None
    by_bytes = tokens.encode_all(rows, tokenizer)
    monkeypatch.setattr(byte_level, "lengths", lambda _: None)
    assert tokens.encode_all(rows, tokenizer) == by_bytes


def test_tokens_that_are_no_bytes_have_no_lengths() -> None:
    from peftctl.text import byte_level

    assert all(byte_level.lengths(made) is None for made in (kinds.metaspace(), kinds.wordpiece()))
