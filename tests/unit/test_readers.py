"""Rows out of every kind of file: the same rows, exact numbers, faults by row, memory that does not grow."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftctl.data.readers import MAX_ROW_BYTES, READERS, read
from peftctl.errors import DataError, MachineError
from peftctl.example import RowFault

ROWS = [
    {"prompt": "one", "completion": 'she said "ja",\nthen left'},
    {"prompt": "zwei\t€", "completion": "🙂"},
    {"prompt": "", "completion": " spaces "},
]
MIB = 1 << 20


def shown(where: str, data: bytes | BinaryIO) -> list[tuple[int, Any]]:
    """Numbers with rows, or with the kind and reason of a fault."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    return [
        (number, (row.kind, str(row)) if isinstance(row, RowFault) else row)
        for number, row in read(where, cast(BinaryIO, file))
    ]


def refused(where: str, data: bytes) -> DataError:
    with pytest.raises(DataError) as caught:
        shown(where, data)
    return caught.value


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def separated(delimiter: str, rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def arrow(new: Callable[..., Any], rows: list[dict[str, Any]]) -> bytes:
    file, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return bytes(sink.getvalue().to_pybytes())


WRITTEN: dict[str, tuple[bytes, list[int]]] = {
    "jsonl": (jsonl(ROWS), [1, 2, 3]),
    "ndjson": (jsonl(ROWS), [1, 2, 3]),
    "json": (json.dumps(ROWS, indent=1).encode(), [1, 2, 3]),
    "csv": (separated(",", ROWS), [2, 4, 5]),
    "tsv": (separated("\t", ROWS), [2, 4, 5]),
    "parquet": (parquet(ROWS), [1, 2, 3]),
    "arrow": (arrow(pa.ipc.new_file, ROWS), [1, 2, 3]),
    "feather": (arrow(pa.ipc.new_stream, ROWS), [1, 2, 3]),
}
PACKED = {
    f"{ending}.{packing}": (pack(WRITTEN[ending][0]), WRITTEN[ending][1])
    for ending in ("jsonl", "json", "csv", "tsv")
    for packing, pack in (("gz", gzip.compress), ("zst", zst))
}


@pytest.mark.parametrize("ending", [*WRITTEN, *PACKED])
def test_every_kind_of_file_gives_the_same_rows_and_leaves_the_file_open(ending: str) -> None:
    data, numbers = {**WRITTEN, **PACKED}[ending]
    file = io.BytesIO(data)
    assert shown(f"a.b/Rows.{ending.upper()}", file) == list(zip(numbers, ROWS, strict=True))
    assert not file.closed


def test_every_reader_is_in_the_table_of_kinds() -> None:
    assert set(READERS) == {*WRITTEN, "txt"}


def test_text_is_a_row_a_line_without_its_end_and_blank_lines_are_none() -> None:
    data = b"\xef\xbb\xbf one \r\n\n  \n" + "zwei €".encode() + b"\nb\xffd\nlast"
    assert shown("a.txt", data) == [
        (1, {"text": " one "}),
        (4, {"text": "zwei €"}),
        (5, ("not UTF-8", "not UTF-8 at byte 1 of the line")),
        (6, {"text": "last"}),
    ]
    assert shown("a.txt.gz", gzip.compress(data)) == shown("a.txt.zst", zst(data)) == shown("a.txt", data)


def test_the_numbers_of_a_url_and_its_query_do_not_hide_the_ending() -> None:
    assert shown("https://host/a.jsonl?sig=x.y#z", b'{"a": 1}') == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\xef\xbb\xbf"),
        ("a.jsonl", b"\n \r\n"),
        ("a.txt", b""),
        ("a.json", b"[]"),
        ("a.json", b'{"data": []}'),
        ("a.csv", b"a,b\n"),
        ("a.tsv", b"a\tb\n\n"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl.zst", zst(b"")),
        ("a.parquet", parquet([{"a": 1}][:0])),
        ("a.arrow", arrow(pa.ipc.new_file, [])),
    ],
)
def test_an_empty_file_has_no_rows(name: str, data: bytes) -> None:
    assert shown(name, data) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{nope", ("broken JSON", "not JSON: Expecting property name enclosed in double quotes at column 2")),
        (b'{"a": 1,\t}', ("broken JSON", "not JSON: Illegal trailing comma before end of object at column 8")),
        (b"[" * 100_000, ("broken JSON", "not JSON: maximum recursion depth exceeded")),
        (b'{"a": ' + b"9" * 5000 + b"}", ("broken JSON", "not JSON: Exceeds the limit (4300 digits)")),
        (b'{"a": "\xc3("}', ("not UTF-8", "not UTF-8 at byte 7 of the line")),
        (b'{"a": "\xff"}', ("not UTF-8", "not UTF-8 at byte 7 of the line")),
        (b'{"a": "\\ud83d"}', ("half of a surrogate pair", "holds half of a surrogate pair: '\\ud83d'")),
        (b'{"a": "\\uDE00"}', ("half of a surrogate pair", "holds half of a surrogate pair: '\\ude00'")),
        (b"[1]", ("not an object", "list, not an object")),
        (b"3", ("not an object", "int, not an object")),
    ],
)
def test_a_faulty_line_of_json_is_named_and_the_others_are_read(line: bytes, fault: tuple[str, str]) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\r\n' + line + b'\r\n{"a": "\\ud83d\\ude42"}'
    first, faulty, last = shown("a.jsonl", data)
    assert (first, last) == ((1, {"a": 1}), (4, {"a": "🙂"}))
    number, (kind, reason) = faulty
    assert (number, kind) == (3, fault[0])
    # The wording after the last colon is Python's, and of this version.
    assert reason.startswith(fault[1]) or (kind == "broken JSON" and reason.startswith("not JSON: "))
    if "column" in fault[1] and "comma" not in fault[1]:
        assert reason.endswith(fault[1].rpartition(" at ")[2])


class Made(io.RawIOBase):
    """Pieces of a file, made as they are read, so that only the reader holds memory."""

    def __init__(self, *pieces: tuple[bytes, int]) -> None:
        self._pieces = [piece for piece, times in pieces for _ in range(times)][::-1]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._pieces:
            return 0
        piece = self._pieces.pop()
        buffer[: len(piece)] = piece[: len(buffer)]
        if len(piece) > len(buffer):
            self._pieces.append(piece[len(buffer) :])
        return min(len(piece), len(buffer))


def made(*pieces: tuple[bytes, int]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(Made(*pieces)))


TOO_LARGE = ("too large", "larger than 8 MiB")
LONG = b"x" * MIB


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize(
    ("name", "before", "opens", "closes", "after", "expected"),
    [
        ("a.jsonl", b'{"a": "0"}\n', b'{"a": "', b'"}\n', b'{"a": "2"}\n', [1, 2, 3]),
        ("a.txt", b"0\n", b"", b"\n", b"2\n", [1, 2, 3]),
        ("a.csv", b"a,b\n0,0\n", b"1,", b"\n", b"2,2\n", [2, 3, 4]),
        ("a.csv", b"a,b\n0,0\n", b'1,"', b'"\n', b"2,2\n", [2, 3, 4]),
        # A quote left open on the large line: what follows is still its text.
        ("a.csv", b"a,b\n0,0\n", b'1,"', b'\n1,1\n""x"\n', b"2,2\n", [2, 3, 6]),
    ],
)
def test_a_row_over_8_mib_is_a_fault_of_its_own_never_held_and_the_next_is_read(
    name: str, before: bytes, opens: bytes, closes: bytes, after: bytes, expected: list[int]
) -> None:
    peaks = []
    for mib in (10, 100):
        file = made((before + opens, 1), (LONG, mib), (closes + after, 1))
        tracemalloc.start()
        try:
            rows = shown(name, file)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert [number for number, _ in rows] == expected
        assert rows[1][1] == TOO_LARGE
        assert "2" in rows[2][1].values() or rows[2][1] == {"text": "2"}
    assert max(peaks) < 4 * MAX_ROW_BYTES
    assert peaks[1] < 1.2 * peaks[0]


def test_a_row_of_many_lines_over_8_mib_is_dropped_up_to_its_closing_quote_and_never_held() -> None:
    lines = b'""' + b"x" * 8190 + b', ""y""\n'  # a doubled quote stands first after every cut
    peaks = []
    for count in (1500, 4500):
        file = made((b'a,b\n1,"', 1), (lines, count), (b'"""z"\n9\n2,3\n', 1))
        tracemalloc.start()
        try:
            rows = shown("a.csv", file)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        cells = ("wrong number of cells", "1 cells under 2 headings")
        assert rows == [(2, TOO_LARGE), (count + 3, cells), (count + 4, {"a": "2", "b": "3"})]
    assert peaks[1] < 1.2 * peaks[0]


def test_the_line_that_makes_a_row_too_large_may_close_its_quote() -> None:
    half = b"x" * (5 * MIB)
    data = b'a,b\n1,"' + half + b"\n" + half + b'"\n2,3\n'
    assert shown("a.csv", data) == [(2, TOO_LARGE), (4, {"a": "2", "b": "3"})]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_limit_is_on_the_row_without_its_end(end: bytes) -> None:
    assert [row for _, row in shown("a.txt", b"x" * MAX_ROW_BYTES + end)] == [{"text": "x" * MAX_ROW_BYTES}]
    assert shown("a.txt", b"x" * (MAX_ROW_BYTES + 1) + end + b"") == [(1, TOO_LARGE)]


@pytest.mark.slow
@pytest.mark.every
def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    peaks = {}
    for times in (20, 400):
        for name, piece in (
            ("a.jsonl", b'{"a": "xyz"}\n' * 50),
            ("a.csv", b'1,"x\ny"\n' * 50),
            ("a.txt", b"word\n" * 50),
        ):
            file = made((b"a,b\n" if name == "a.csv" else b"\n", 1), (piece, times))
            tracemalloc.start()
            try:
                count = sum(1 for _ in read(name, file))
                peaks[name, times] = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert count == 50 * times
    for name in ("a.jsonl", "a.csv", "a.txt"):
        assert peaks[name, 400] < peaks[name, 20] + 64 * 1024


@pytest.mark.parametrize("group_rows", [500, 4000])
def test_a_parquet_file_is_read_in_pieces_even_of_a_row_group(group_rows: int) -> None:
    noise = random.Random(0)
    rows = [{"text": noise.randbytes(5000).hex()} for _ in range(4000)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group_rows, use_dictionary=False)
    size = len(file.getvalue())
    assert size > 20 * MIB
    tracemalloc.start()  # what arrow reads of a Python file is Python's memory
    try:
        assert all(row == rows[number - 1] for number, row in read("a.parquet", file))
        assert tracemalloc.get_traced_memory()[1] < size / 3
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a,b\n"x\ny",1\n2,3\n', [(2, {"a": "x\ny", "b": "1"}), (4, {"a": "2", "b": "3"})]),
        ('\ufeffa,b\r\n"x\r\ny",1\r\n2,3', [(2, {"a": "x\r\ny", "b": "1"}), (4, {"a": "2", "b": "3"})]),
        ("\n\na,b\n\n1,2\n", [(5, {"a": "1", "b": "2"})]),
        ('a,b\n"","x""y"\n', [(2, {"a": "", "b": 'x"y'})]),
        ('"a\nb",c\n1,2\n', [(3, {"a\nb": "1", "c": "2"})]),
        ('a,b\n5" disk,x\n1,2\n', [(2, {"a": '5" disk', "b": "x"}), (3, {"a": "1", "b": "2"})]),
        (
            "a,b\n1\n1,2,3\n1,2\n",
            [
                (2, ("wrong number of cells", "1 cells under 2 headings")),
                (3, ("wrong number of cells", "3 cells under 2 headings")),
                (4, {"a": "1", "b": "2"}),
            ],
        ),
        ('a,b\n1,"x\0\n"\n1,2\n', [(2, ("NUL byte", "a NUL byte at byte 4 of the line")), (4, {"a": "1", "b": "2"})]),
        (
            'a,b\n"x"y,2\n1,2\n',
            [(2, ("broken CSV", "not CSV: ',' expected after '\"'")), (3, {"a": "1", "b": "2"})],
        ),
        (
            'a,b\n1,2\n3,"x\n4,5\n',
            [
                (2, {"a": "1", "b": "2"}),
                (3, ("quote never closed", "a quote is never closed, so all that follows was taken for its text")),
            ],
        ),
        (
            'a,b\n1,"',
            [(2, ("quote never closed", "a quote is never closed, so all that follows was taken for its text"))],
        ),
    ],
)
def test_csv_rows_have_the_line_they_begin_on_and_faults_of_their_own(text: str, expected: list[Any]) -> None:
    assert shown("a.csv", text.encode()) == expected
    assert shown("a.tsv", text.replace(",", "\t").encode()) == [
        (n, (v[0], v[1].replace(",' exp", "\t' exp")) if isinstance(v, tuple) else v) for n, v in expected
    ]


def test_a_quote_that_is_never_closed_in_a_large_file_is_named_where_it_opens() -> None:
    file = made((b'a,b\n1,2\n1,"', 1), (b"x" * 8000 + b",y\n", 1500))
    (first, row), (number, (kind, _)) = shown("a.csv", file)
    assert (first, row) == (2, {"a": "1", "b": "2"})
    assert (number, kind) == (3, "quote never closed")


def test_text_that_is_not_utf8_within_quotes_is_the_fault_of_its_row_alone() -> None:
    data = b'a,b\n1,"x\n\xffy\nz"\n"2",3\n'
    assert shown("a.csv", data) == [
        (2, ("not UTF-8", "not UTF-8 at byte 0 of the line")),
        (5, {"a": "2", "b": "3"}),
    ]


def test_a_csv_field_over_pythons_own_limit_is_read() -> None:
    assert shown("a.csv", b"a\n" + b"x" * 200_000) == [(2, {"a": "x" * 200_000})]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "a.csv: no line of headings"),
        ("a.csv", b"\n\n", "a.csv: no line of headings"),
        ("a.csv", b"\na,,b\n", "a.csv:2: heading 2 is empty"),
        ("a.csv", b"a,b,a\n", "a.csv:1: repeated heading: a"),
        ("a.csv", b"a,\xff\n", "a.csv:1: not UTF-8 at byte 2 of the line"),
        ("a.csv", b'a,"b\n1,2\n', "a.csv:1: a quote is never closed"),
        ("a.json", b"", "a.json:1:1: not JSON: "),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json:2:7: not JSON: "),
        ("a.json", b'[{"a": "\xff"}]', "a.json: not UTF-8 at byte 8 of the file"),
        ("a.json", b"[" * 100_000, "a.json: not JSON: "),
        ("a.json", b"3", "a.json: not a list of objects (found int); allowed: "),
        ("a.json", b"[1, 2]", "a.json: not a list of objects (found int); allowed: "),
        ("a.json", b'{"x": 1, "y": ["a"]}', "a.json: holds no lists of objects (found only x, y); allowed: "),
        ("a.json", b'{"x": [{}], "y": [{}]}', "a.json: holds 2 lists of objects (found lists of objects under x, y)"),
        ("a.parquet", b"", "a.parquet: not a whole Parquet file: "),
        ("a.parquet", b"not at all a table", "a.parquet: not a whole Parquet file: "),
        ("a.parquet", WRITTEN["parquet"][0][:-20], "a.parquet: not a whole Parquet file: "),
        ("a.arrow", b"", "a.arrow: not a whole Arrow file: "),
        ("a.arrow", b"not at all a table", "a.arrow: not a whole Arrow file: "),
        ("a.arrow", WRITTEN["arrow"][0][:-20], "a.arrow: not a whole Arrow file: "),
        ("a.arrow", WRITTEN["feather"][0][:-20], "a.arrow: not a whole Arrow file: "),
        ("a.jsonl.gz", b"{}\n", "a.jsonl.gz: broken or cut short, as .gz: Not a gzipped file"),
        ("a.jsonl.zst", b"{}\n" * 9, "a.jsonl.zst: broken or cut short, as .zst: "),
    ],
)
def test_what_is_wrong_with_the_file_as_a_whole_is_said_with_its_place(name: str, data: bytes, message: str) -> None:
    assert refused(name, data).message.startswith(message)


def test_json_of_one_object_a_line_points_to_the_right_ending() -> None:
    assert ".jsonl" in refused("a.json", b'{"a": 1}\n{"a": 2}\n').hint


def test_the_one_list_of_objects_is_found_and_its_faulty_items_are_named() -> None:
    data = b'\xef\xbb\xbf{"version": 1, "tags": ["x"], "none": [], "data": [{"a": 1}, 3, {"a": "\\ud83d"}]}'
    assert shown("a.json", data) == [
        (1, {"a": 1}),
        (2, ("not an object", "int, not an object")),
        (3, ("half of a surrogate pair", "holds half of a surrogate pair: '\\ud83d'")),
    ]


def noise_rows(count: int) -> bytes:
    noise = random.Random(0)
    return b"".join(b'{"a": "%s"}\n' % noise.randbytes(50).hex().encode() for _ in range(count))


@pytest.mark.parametrize(("packing", "pack"), [("gz", gzip.compress), ("zst", zst)])
@pytest.mark.parametrize("cut", [3, 200_000])
def test_a_compressed_file_that_is_cut_short_gives_its_rows_and_then_says_so(
    packing: str, pack: Callable[[bytes], bytes], cut: int
) -> None:
    read_rows = []
    with pytest.raises(DataError) as caught:
        read_rows.extend(read(f"a.jsonl.{packing}", io.BytesIO(pack(noise_rows(10_000))[:-cut])))
    rows = len(read_rows)
    assert not [row for _, row in read_rows if isinstance(row, RowFault)]
    assert rows > 1000
    assert caught.value.message.startswith(f"a.jsonl.{packing}: broken or cut short after line {rows}, as .{packing}")


def test_a_failing_disk_is_not_called_a_broken_file() -> None:
    class Failing(Made):
        def readinto(self, buffer: Any) -> int:
            if not self._pieces:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer)

    for name, data in (("a.jsonl", b"{}\n"), ("a.jsonl.gz", gzip.compress(b"{}\n")), ("a.jsonl.zst", zst(b"{}\n"))):
        file = cast(BinaryIO, io.BufferedReader(Failing((data, 1))))
        with pytest.raises(MachineError, match=f"{name}: cannot be read on.*: Input/output error"):
            shown(name, file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jsnl", "(found .jsnl); allowed: .jsonl, .ndjson, .json, .csv"),
        ("a.jsnl", "did you mean .jsonl?"),
        ("a.CVS.gz", "(found .cvs.gz)"),
        ("a.cvs.gz", "did you mean .csv.gz?"),
        ("a.parquet.gz", "(found .parquet.gz)"),
        ("a.gz", "(found .gz)"),
        ("folder.jsonl/name", "(found no ending)"),
        ("s3://bucket.csv/a.pdf?x=.csv", "(found .pdf)"),
    ],
)
def test_an_unknown_ending_is_refused_at_once_with_what_was_found_and_meant(name: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(name, io.BytesIO())
    assert caught.value.message.startswith(f"{name}: not a kind of file that can be read ")
    assert said in caught.value.message


def test_columns_are_values_of_python_and_one_that_is_none_is_the_fault_of_its_row() -> None:
    turns = [{"role": "user", "content": "hi"}]
    good = [{"messages": turns, "score": 0.5, "n": 3, "none": None, "ok": True}]
    assert shown("a.parquet", parquet(good)) == shown("a.arrow", arrow(pa.ipc.new_stream, good)) == [(1, good[0])]

    column = pa.array([b"ok", b"\xff", b"fine"], pa.binary()).view(pa.string())
    file, table = io.BytesIO(), pa.table({"text": column})
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    fault = ("not UTF-8", "not UTF-8 at byte 0 of the value")
    assert shown("a.arrow", file.getvalue()) == [(1, {"text": "ok"}), (2, fault), (3, {"text": "fine"})]


def test_rows_are_numbered_on_through_batches() -> None:
    rows = [{"n": i} for i in range(1000)]
    file, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    assert shown("a.arrow", file.getvalue()) == [(i + 1, row) for i, row in enumerate(rows)]


def test_a_repeated_column_is_refused() -> None:
    file, table = io.BytesIO(), pa.table([[1], [2]], names=["a", "a"])
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert refused("a.arrow", file.getvalue()).message == "a.arrow: repeated column: a"


def test_columns_from_a_stream_that_does_not_seek_are_refused() -> None:
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(DataError, match="cannot be read from a stream"):
            shown(name, made((b"ARROW1", 1)))


def test_a_gzip_file_with_changed_bytes_is_refused() -> None:
    packed = bytearray(gzip.compress(noise_rows(1000)))  # a zstd frame need not have a checksum
    packed[200:300] = bytes(100)
    assert refused("a.txt.gz", bytes(packed)).message.startswith("a.txt.gz: broken or cut short")
