"""Rows from JSONL files: every row with its place, every fault with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftctl.data.sources import read_examples
from peftctl.errors import DataError, Place
from peftctl.example import Segment, Segments


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
        f"{path}:5: prompt is int, not text",
        f"{path}:6: NoneType, not an object",
    ]
    assert error.hint == "rows of format prompt_completion hold prompt: text, completion: text"


def test_ten_faults_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = file(tmp_path, *[b"x"] * 13)
    lines = refused(path).message.split("\n")
    assert len(lines) == 11
    assert lines[9].startswith(f"{path}:10: ")
    assert lines[10] == "... and 3 more"
    assert len(refused(file(tmp_path, *[b"x"] * 10)).message.split("\n")) == 10


def test_a_file_without_a_good_row_says_what_a_row_is(tmp_path: Path) -> None:
    assert refused(file(tmp_path, b"x")).hint == "each line holds one JSON object"
    path = file(tmp_path, b"", b" ")
    assert str(refused(path)) == f"{path}: no rows"


def test_a_format_is_chosen_by_the_first_row_s_columns(tmp_path: Path) -> None:
    path = file(tmp_path, b'{"text": "a", "id": 3}')
    error = refused(path)
    assert error.message == f"{path}:1: the columns id, text fit no format for causal_lm"
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
