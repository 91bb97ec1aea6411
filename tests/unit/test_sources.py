"""Rows from sources: every row with its place, every fault with its line, every one of them accounted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from peftctl.data import sources
from peftctl.data.sources import Side, Tally, choose_format, read_examples, renamed
from peftctl.errors import DataError, PeftctlError, Place, UsageError
from peftctl.example import Conversation, RowFault, Segment, Segments
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.tasks import TASKS


def row(prompt: str, completion: str = "c") -> bytes:
    return json.dumps({"prompt": prompt, "completion": completion}).encode()


def file(folder: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join(line + end for line in lines))
    return path


def read(path: Path, format_name: str = "auto", limit: int | None = None) -> Any:
    return read_examples(path, format_name, limit, "causal_lm")


def refused(path: Path, format_name: str = "auto") -> DataError:
    with pytest.raises(DataError) as error:
        read(path, format_name)
    return error.value


def example(prompt: str) -> Segments:
    return Segments((Segment(prompt), Segment("c", 1.0)))


def test_rows_come_in_order_with_their_lines_blank_ones_skipped(tmp_path: Path) -> None:
    path = file(tmp_path, row("a"), b"", b"  \t", row("b"), row("a"))
    assert [(s.place, s.example) for s in read(path)] == [
        (Place(str(path), 1), example("a")),
        (Place(str(path), 4), example("b")),
        (Place(str(path), 5), example("a")),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path, end: bytes) -> None:
    path = file(tmp_path, b"\xef\xbb\xbf" + row("é"), row("日本"), end=end)
    assert [s.example for s in read(path)] == [example("é"), example("日本")]


def test_a_last_line_without_an_end_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(row("a") + b"\n" + row("b"))
    assert len(read(path)) == 2


def test_a_line_separator_within_text_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b\u0085c", "completion": "c"}, ensure_ascii=False) + "\n", "utf-8")
    assert [s.example for s in read(path)] == [example("a\u2028b\u0085c")]


def test_the_limit_counts_rows_and_nothing_after_it_is_read(tmp_path: Path) -> None:
    path = file(tmp_path, row("a"), b"", row("b"), b"broken")
    assert [s.example for s in read(path, limit=2)] == [example("a"), example("b")]
    assert len(read(path, limit=1)) == 1


def test_every_faulty_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = file(tmp_path, row("a"), b'{"prompt": ', b"[1]", b'"\xe9"', b'{"prompt": 3, "completion": "c"}', b"null")
    error = refused(path)
    lines = error.message.split("\n")
    assert lines[0].startswith(f"{path}:2: not JSON: ")
    assert lines[1:] == [
        f"{path}:3: list, not an object",
        f"{path}:4: not UTF-8 at byte 1 of the line",
        f"{path}:5: prompt is a number, not text",
        f"{path}:6: NoneType, not an object",
    ]
    assert (
        error.hint == "rows of format prompt_completion hold prompt: text, completion: text (or both lists of messages)"
    )


def test_ten_faults_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = file(tmp_path, *[b"x"] * 13)
    lines = refused(path).message.split("\n")
    assert len(lines) == 11
    assert lines[9].startswith(f"{path}:10: ")
    assert lines[10] == "... and 3 more"
    assert len(refused(file(tmp_path, *[b"x"] * 10)).message.split("\n")) == 10


def test_a_file_without_a_good_row_is_refused(tmp_path: Path) -> None:
    assert refused(file(tmp_path, b"x")).message.startswith(f"{tmp_path}/rows.jsonl:1: not JSON: ")
    path = file(tmp_path, b"", b" ")
    assert str(refused(path)) == f"{path}: no rows"


def test_a_format_is_chosen_by_the_first_row_s_columns(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"id": 3, "txt": "a"}')
    error = refused(path)
    assert error.message == f"{path}:1: the columns id, txt fit no format for causal_lm"
    assert "prompt_completion reads prompt: text, completion: text" in error.hint


def test_columns_that_fit_two_formats_are_to_be_decided(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"messages": [{"role": "user", "content": "q"}], "prompt": "p", "completion": "c"}')
    error = refused(path)
    assert error.message == (
        f"{path}:1: the columns completion, messages, prompt fit more than one format: messages, prompt_completion"
    )
    assert error.hint == "name one as `format:`"
    assert [s.example for s in read(path, "prompt_completion")] == [Segments((Segment("p"), Segment("c", 1.0)))]


def test_a_named_format_is_used_whatever_the_columns(tmp_path: Path) -> None:
    path = file(tmp_path, row("a"))
    assert refused(path, "messages").message == f"{path}:1: no list of messages (columns: prompt, completion)"


def test_an_absent_file_names_the_nearest_that_is_there(tmp_path: Path) -> None:
    file(tmp_path, row("a"))
    error = refused(tmp_path / "row.jsonl")
    assert str(error) == (
        f"{tmp_path}/row.jsonl: cannot be read: No such file or directory\nhint: did you mean {tmp_path}/rows.jsonl?"
    )
    assert refused(tmp_path / "no" / "rows.jsonl").hint == ""
    assert refused(tmp_path).message == f"{tmp_path}: is a folder, not a file of rows"


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b', "completion": "c"}'])
def test_json_that_python_will_not_read_is_a_fault_of_its_row(tmp_path: Path, line: bytes) -> None:
    assert refused(file(tmp_path, line)).message.startswith(f"{tmp_path}/rows.jsonl:1: ")


# A recipe's sources


def recipe(folder: Path, *train: Source, held_out: EvalSource | None = None, seed: int = 0, **data: Any) -> Recipe:
    settings = DataSettings(train=train or (Source(path="rows.jsonl"),), eval=held_out, **data)
    return Recipe(
        ModelSettings(name="m"), settings, LoraSettings(), "out", train=TrainSettings(seed=seed), folder=folder
    )


def texts(side: Side | None) -> list[str]:
    assert side is not None
    return [each.example.pieces[0].text for each in side.examples if isinstance(each.example, Segments)]


def error_of(made: Recipe, kind: type[PeftctlError] = DataError) -> PeftctlError:
    with pytest.raises(PeftctlError) as error:
        sources.read(made)
    assert type(error.value) is kind
    return error.value


def rows_of(folder: Path, *rows: Mapping[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QA = [{"question": f"q{n}", "answer": "c", "lang": "en" if n % 2 else "de", "prompt": "no"} for n in range(6)]
COLUMNS = {"prompt": "question", "completion": "answer"}


def test_columns_have_the_names_the_format_reads(tmp_path: Path) -> None:
    rows_of(tmp_path, *QA)
    train, _ = sources.read(recipe(tmp_path, Source(path="rows.jsonl", columns=COLUMNS)))
    assert texts(train) == [f"q{n}" for n in range(6)]  # and not the file's own prompt


def test_columns_may_change_places_or_serve_twice() -> None:
    assert renamed({"a": 1, "b": 2, "c": 3}, {"a": "b", "b": "a"}) == {"a": 2, "b": 1, "c": 3}
    assert renamed({"x": 1}, {"a": "x", "b": "x"}) == {"a": 1, "b": 1}
    assert renamed({"x": 1}, None) == {"x": 1}


def test_a_row_without_a_mapped_column_is_named(tmp_path: Path) -> None:
    path = rows_of(tmp_path, QA[0], {"question": "q"})
    error = error_of(recipe(tmp_path, Source(path="rows.jsonl", columns=COLUMNS)))
    assert error.message == f"{path}:2: no column 'answer', which columns.completion names (columns: question)"


def test_the_filter_sees_the_file_s_own_columns(tmp_path: Path) -> None:
    rows_of(tmp_path, *QA)
    source = Source(path="rows.jsonl", columns=COLUMNS, filter="question != 'q3' and lang == 'en' and prompt == 'no'")
    train, _ = sources.read(recipe(tmp_path, source))
    assert texts(train) == ["q1", "q5"]
    assert (train.tally.read, train.tally.filtered) == (6, 4)


def test_the_limit_counts_rows_that_pass_the_filter(tmp_path: Path) -> None:
    rows_of(tmp_path, *QA)
    for limit, found in ((1, ["q1"]), (2, ["q1", "q3"]), (9, ["q1", "q3", "q5"])):
        source = Source(path="rows.jsonl", columns=COLUMNS, filter="lang == 'en'", limit=limit)
        train, _ = sources.read(recipe(tmp_path, source))
        assert texts(train) == found
        assert train.tally.read == train.tally.filtered + len(found)


def test_a_filter_that_fails_on_a_row_names_it(tmp_path: Path) -> None:
    path = rows_of(tmp_path, QA[1], {"question": "q", "answer": "a"})
    error = error_of(recipe(tmp_path, Source(path="rows.jsonl", columns=COLUMNS, filter="lang == 'en'")))
    assert error.message == f"{path}:2: filter: 'lang' is undefined"


def test_a_filter_that_leaves_nothing_is_said_for_its_source_alone(tmp_path: Path) -> None:
    rows_of(tmp_path, *QA)
    rows_of(tmp_path, *QA[:2], name="two.jsonl")
    some = Source(path="rows.jsonl", columns=COLUMNS, filter="lang == 'en'")
    none = Source(path="two.jsonl", columns=COLUMNS, filter="lang == 'fr'")
    message = f"{tmp_path}/two.jsonl: no rows (the filter left out all 2)"
    assert error_of(recipe(tmp_path, some, none)).message == message
    assert (
        error_of(recipe(tmp_path, some, held_out=EvalSource(**none.model_dump(exclude={"weight"})))).message == message
    )


def test_an_empty_source_is_named_though_another_one_has_bad_rows(tmp_path: Path) -> None:
    file(tmp_path, row("a"), b"x", row("b"))
    (tmp_path / "empty.jsonl").touch()
    both = (Source(path="rows.jsonl"), Source(path="empty.jsonl"))
    error = error_of(recipe(tmp_path, *both, on_bad_row="drop", max_bad_fraction=0.5))
    assert error.message == f"{tmp_path}/empty.jsonl: no rows"
    assert error_of(recipe(tmp_path, *both)).message.startswith(f"{tmp_path}/rows.jsonl:2: not JSON")


def test_rows_know_the_number_of_their_source(tmp_path: Path) -> None:
    file(tmp_path, row("a"), row("b"))
    rows_of(tmp_path, {"text": "c"}, name="c.jsonl")
    train, held_out = sources.read(recipe(tmp_path, Source(path="rows.jsonl"), Source(path="c.jsonl")))
    assert [(each.source, each.place.line) for each in train.examples] == [(0, 1), (0, 2), (1, 1)]
    assert held_out is None


# Bad rows


def test_bad_rows_that_may_be_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    file(tmp_path, row("a"), b"x", b"[1]", b'{"prompt": 3, "completion": "c"}', b"y", *[row("b")] * 5)
    train, _ = sources.read(recipe(tmp_path, on_bad_row="drop", max_bad_fraction=0.4))
    assert texts(train) == ["a"] + ["b"] * 5
    assert train.tally.bad == {"broken JSON": 2, "not an object": 1, "wrong type": 1}
    assert train.tally.read == 10
    assert len(train.tally.shown) == 4


def test_more_bad_rows_than_may_be_left_out_end_the_run(tmp_path: Path) -> None:
    path = file(tmp_path, row("a"), b"x", b"[1]", *[row("b")] * 7)
    error = error_of(recipe(tmp_path, on_bad_row="drop", max_bad_fraction=0.19))
    lines = error.message.split("\n")
    assert lines[0] == (
        "2 of 10 rows are bad (20.0%; 1 broken JSON, 1 not an object), more than data.max_bad_fraction 0.19 allows"
    )
    assert [line.split(": ")[0] for line in lines[1:]] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize("bad", range(1, 100))
def test_just_as_many_bad_rows_as_may_be_are_left_out(bad: int) -> None:
    """The share as a person writes it, such as 0.29, of which a product with 100 would be a little less than 29."""
    for most, fits in ((bad / 100, True), ((bad - 1) / 100, False)):
        counted = Tally(most, read=100)
        for line in range(bad):
            counted.fault(Place("f", line), RowFault("bad"))
        if fits:
            counted.settle()
        else:
            with pytest.raises(DataError, match=f"^{bad} of 100 rows are bad"):
                counted.settle()


def test_a_tally_shows_the_first_faults_and_counts_the_rest() -> None:
    for most in (None, 0.5):
        counted = Tally(most, read=20)
        for line in range(1, 13):
            counted.fault(Place("f", line), RowFault("bad", "kind"))
        with pytest.raises(DataError) as error:
            counted.settle()
        lines = [line for line in error.value.message.split("\n") if "rows are bad" not in line]
        assert lines == [*(f"f:{line}: bad" for line in range(1, 11)), "... and 2 more"]


def test_nothing_read_is_no_share_of_anything() -> None:
    Tally(0.0).settle()
    Tally().settle()


# Formats


def test_a_format_is_chosen_among_those_of_the_task() -> None:
    place = Place("f", 1)
    for columns, name in (
        ({"messages"}, "messages"), ({"text", "id"}, "text"), ({"prompt", "completion"}, "prompt_completion"),
        ({"instruction", "output"}, "instruction"),
    ):  # fmt: skip
        assert choose_format("auto", frozenset(columns), TASKS["causal_lm"], place).name == name
    with pytest.raises(DataError, match="fit no format for causal_lm"):
        choose_format("auto", frozenset({"anchor", "positive"}), TASKS["causal_lm"], place)
    assert choose_format("pairs", frozenset({"x"}), TASKS["causal_lm"], place).name == "pairs"


def test_the_first_good_row_that_passes_the_filter_says_the_format(tmp_path: Path) -> None:
    rows_of(tmp_path, {"skip": 1}, {"skip": 0, "text": "a"})
    made = sources.resolve(recipe(tmp_path, Source(path="rows.jsonl", filter="not skip")))
    assert made.data.train[0].format == "text"
    train, _ = sources.read(made)
    assert texts(train) == ["a"]


# Pins


def test_a_file_is_pinned_to_its_contents_and_the_format_named(tmp_path: Path) -> None:
    path = file(tmp_path, row("a"))
    rows_of(tmp_path, {"text": "a"}, name="eval.jsonl")
    made = sources.resolve(recipe(tmp_path, held_out=EvalSource(path="eval.jsonl")))
    assert made.data.train[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert made.data.train[0].format == "prompt_completion"
    assert made.data.eval is not None
    assert (made.data.eval.format, len(made.data.eval.sha256 or "")) == ("text", 64)
    assert made.origins["data.train[0].sha256"] == made.origins["data.eval.format"] == "from the rows"
    assert sources.resolve(made) == made


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, row("a"))
    made = sources.resolve(recipe(tmp_path))
    file(tmp_path, row("b"))
    with pytest.raises(DataError, match=f"^{path}: is not the file that the recipe pins"):
        sources.resolve(made)


def test_a_file_that_is_not_there_is_said_when_it_is_pinned(tmp_path: Path) -> None:
    file(tmp_path, row("a"))
    with pytest.raises(DataError, match=r"row\.jsonl: cannot be read: No such file"):
        sources.resolve(recipe(tmp_path, Source(path="row.jsonl")))


def test_columns_that_fit_nothing_are_said_when_the_format_is_chosen(tmp_path: Path) -> None:
    path = rows_of(tmp_path, {"x": 1})
    with pytest.raises(DataError, match=f"^{path}:1: the columns x fit no format for causal_lm"):
        sources.resolve(recipe(tmp_path))


@pytest.mark.parametrize("setting", ["config", "hub_split", "revision"])
@pytest.mark.parametrize("path", ["rows.jsonl", "memory://rows.jsonl"])
def test_settings_of_hub_data_sets_have_no_effect_elsewhere(tmp_path: Path, setting: str, path: str) -> None:
    file(tmp_path, row("a"))
    source = Source(path=path).model_copy(update={setting: "x"})
    with pytest.raises(UsageError, match=f"^{setting}: has no effect on {path}, which is no hub data set$"):
        sources.locate(recipe(tmp_path, source), source)


def test_a_hash_has_no_effect_on_a_hub_data_set(tmp_path: Path) -> None:
    source = Source(path="owner/name", sha256="0" * 64)
    with pytest.raises(UsageError, match=r"^sha256: has no effect on owner/name, a hub data set"):
        sources.locate(recipe(tmp_path, source), source)


def test_a_folder_beside_the_recipe_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    source = Source(path="owner/name")
    where = sources.locate(recipe(tmp_path, source), source)
    assert (where.name, where.hub, where.remote) == (str(tmp_path / "owner/name"), None, False)


def test_a_url_is_read_whole_or_streamed_and_then_not_pinned(tmp_path: Path) -> None:
    import fsspec

    data = row("a") + b"\n"
    fsspec.filesystem("memory").pipe("/pinned/rows.jsonl", data)
    url = "memory://pinned/rows.jsonl"
    made = sources.resolve(recipe(tmp_path, Source(path=url)))
    assert made.data.train[0].sha256 == hashlib.sha256(data).hexdigest()
    train, _ = sources.read(made)
    assert [str(each.place) for each in train.examples] == [f"{url}:1"]

    heard: list[str] = []
    streamed = sources.resolve(recipe(tmp_path, Source(path=url), streaming=True), heard.append)
    assert (streamed.data.train[0].sha256, streamed.data.train[0].format) == (None, "prompt_completion")
    assert heard == [f"{url} is streamed, so nothing pins what it holds"]
    with pytest.raises(UsageError, match=r"^sha256: memory://pinned/rows\.jsonl is streamed"):
        sources.resolve(recipe(tmp_path, Source(path=url, sha256="0" * 64), streaming=True))


# Settings for conversations


@pytest.mark.parametrize("setting", [{"learn": "last"}, {"learn": "all"}, {"template": "chatml"}])
def test_settings_for_conversations_have_no_effect_without_any(tmp_path: Path, setting: dict[str, Any]) -> None:
    file(tmp_path, row("a"), row("b"))
    (name,) = setting
    error = error_of(recipe(tmp_path, **setting), UsageError)
    assert error.message == f"data.{name}: has no effect on rows that are no conversations"
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    rows_of(tmp_path, chat, name="chat.jsonl")
    sources.read(recipe(tmp_path, Source(path="rows.jsonl"), Source(path="chat.jsonl"), **setting))
    sources.read(recipe(tmp_path, held_out=EvalSource(path="chat.jsonl"), **setting))
    sources.check_effects(DataSettings(train=(Source(path="x"),), **setting), [Conversation(())])


# Held-out rows alone


@pytest.mark.parametrize("streaming", [True, False])
def test_held_out_rows_of_their_own_are_read_without_the_others(tmp_path: Path, streaming: bool) -> None:
    rows_of(tmp_path, *QA, name="eval.jsonl")
    held_out = EvalSource(path="eval.jsonl", columns=COLUMNS, filter="lang == 'en'", limit=2)
    made = recipe(tmp_path, Source(path="absent.jsonl"), held_out=held_out, streaming=streaming)
    side = sources.held_out_side(made)
    assert texts(side) == ["q1", "q3"]
    assert side is not None
    assert (side.tally.read, side.tally.filtered) == (4, 2)
    assert [each.place.line for each in sources.held_out(made)] == [2, 4]


def test_rows_held_out_of_the_training_rows_are_the_same_asked_for_alone(tmp_path: Path) -> None:
    file(tmp_path, *[row(f"{n}") for n in range(20)])
    made = recipe(tmp_path, held_out=EvalSource(count=5), seed=3)
    assert sources.held_out(made) == (sources.read(made)[1] or Side([], Tally())).examples
    assert sources.held_out(recipe(tmp_path)) == []


def test_a_stream_s_first_rows_are_held_out(tmp_path: Path) -> None:
    file(tmp_path, row("0"), b"x", *[row(f"{n}") for n in range(1, 20)])
    lenient: dict[str, Any] = {"on_bad_row": "drop", "max_bad_fraction": 0.5}
    side = sources.held_out_side(recipe(tmp_path, held_out=EvalSource(count=3), streaming=True, **lenient))
    assert texts(side) == ["0", "1", "2"]
    assert side is not None
    assert (side.tally.read, side.tally.bad) == (3, {})
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not JSON"):
        sources.held_out(recipe(tmp_path, held_out=EvalSource(count=3), streaming=True))


def test_bad_rows_of_held_out_rows_are_judged_for_themselves(tmp_path: Path) -> None:
    file(tmp_path, *[row(f"{n}") for n in range(100)])
    (tmp_path / "eval.jsonl").write_bytes(b"x\n" + row("e") + b"\n")
    for streaming in (True, False):
        settings: dict[str, Any] = {"on_bad_row": "drop", "streaming": streaming}
        made = recipe(tmp_path, held_out=EvalSource(path="eval.jsonl"), **settings)
        with pytest.raises(DataError, match=r"^1 of 2 rows are bad"):
            sources.held_out(made)
        made = recipe(tmp_path, held_out=EvalSource(path="eval.jsonl"), max_bad_fraction=0.5, **settings)
        side = sources.held_out_side(made)
        assert side is not None
        assert (texts(side), side.tally.bad) == (["e"], {"broken JSON": 1})


def numbered(found: Sequence[Any]) -> list[int]:
    return [each.place.line for each in found]


def test_the_limit_stops_reading_there(tmp_path: Path) -> None:
    """What stands after the last row that is wanted may be broken."""
    file(tmp_path, row("a"), row("b"), b"broken")
    train, _ = sources.read(recipe(tmp_path, Source(path="rows.jsonl", limit=2)))
    assert numbered(train.examples) == [1, 2]
    assert (train.tally.read, train.tally.bad) == (2, {})
