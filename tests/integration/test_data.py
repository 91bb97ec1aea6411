"""Whole runs over every kind of source: the same rows give the same bits, and what is wrong with rows is named."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from peftctl import atomic
from peftctl.cli import app
from peftctl.data import readers, stream
from peftctl.events import Events
from peftctl.recipe import load
from peftctl.train import job
from tests import jobs, tiny

WEIGHTS = "adapter/adapter_model.safetensors"
SHORT = {"max_steps": 2, "epochs": None, "batch_size": 4}
PAIRS = [{"prompt": f"is {n} odd? " + "é日" * (n % 3), "completion": "odd" if n % 2 else "even"} for n in range(12)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As small as a model can be: these runs are about rows."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    return tiny.save(folder, tiny.llama(num_hidden_layers=1, hidden_size=16, intermediate_size=16))


def train(folder: Path, model: Path, name: str = "run", **sections: Any) -> tuple[Path, list[dict[str, Any]]]:
    sections["train"] = {**SHORT, **sections.get("train", {})}
    return jobs.train(folder, model, name, **sections)


def bits(run: Path) -> str:
    return atomic.sha256(run / WEIGHTS)


def rows_of(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = jobs.manifest(run)["data"]["train"]
    return facts


# Every kind of file


def table(path: Path, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        made = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter)
        made.writeheader()
        made.writerows(PAIRS)


def zstd(path: Path) -> None:
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in PAIRS).encode())


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in PAIRS).encode()))


def windows(path: Path) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in PAIRS)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())


def arrow(path: Path) -> None:
    made = pa.Table.from_pylist(PAIRS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
        writer.write_table(made)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: tiny.jsonl(path, PAIRS),
    "windows.jsonl": windows,
    "rows.json": lambda path: path.write_text(json.dumps(PAIRS)),
    "rows.csv": lambda path: table(path, ","),
    "rows.tsv": lambda path: table(path, "\t"),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(PAIRS), path),
    "rows.arrow": arrow,
    "rows.feather": lambda path: feather.write_feather(pa.Table.from_pylist(PAIRS), path),
    "rows.jsonl.gz": packed,
    "rows.jsonl.zst": zstd,
}


def test_every_kind_of_file_gives_the_same_run_bit_for_bit(tmp_path: Path, model: Path) -> None:
    found = {}
    for name, write in WRITERS.items():
        write(tmp_path / name)
        run, _ = train(tmp_path, model, f"run-{name}", data={"train": name})
        assert rows_of(run)["read"] == 12
        found[name] = bits(run)
    assert set(found.values()) == {found["rows.jsonl"]}
    other = [*PAIRS[:-1], {**PAIRS[-1], "completion": "Odd"}]
    tiny.jsonl(tmp_path / "other.jsonl", other)
    run, _ = train(tmp_path, model, "other", data={"train": "other.jsonl"}, train={"max_steps": 3})
    same, _ = train(tmp_path, model, "same", data={"train": "rows.jsonl"}, train={"max_steps": 3})
    assert bits(run) != bits(same)


def test_lines_of_text_and_a_column_of_text_are_the_same(tmp_path: Path, model: Path) -> None:
    texts = [f"line {n}" for n in range(8)]
    (tmp_path / "rows.txt").write_text("\n\n".join(texts))
    tiny.jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    one, _ = train(tmp_path, model, "one", data={"train": "rows.txt"})
    two, _ = train(tmp_path, model, "two", data={"train": "rows.jsonl"})
    assert bits(one) == bits(two)


def test_columns_and_a_filter_give_the_rows_that_another_file_holds(tmp_path: Path, model: Path) -> None:
    asked = [{"q": row["prompt"], "a": row["completion"], "n": n} for n, row in enumerate(PAIRS)]
    tiny.jsonl(tmp_path / "asked.jsonl", [*asked, *({"q": "x", "a": "y", "n": n} for n in range(100, 120))])
    source = {"path": "asked.jsonl", "columns": {"prompt": "q", "completion": "a"}, "filter": "n < 100"}
    one, _ = train(tmp_path, model, "one", data={"train": [source]})
    tiny.jsonl(tmp_path / "plain.jsonl", PAIRS)
    two, _ = train(tmp_path, model, "two", data={"train": "plain.jsonl"})
    assert bits(one) == bits(two)
    assert (rows_of(one)["read"], rows_of(one)["filtered"], rows_of(one)["kept"]) == (32, 20, 12)


def test_two_sources_are_taken_by_their_weights(tmp_path: Path, model: Path) -> None:
    tiny.jsonl(tmp_path / "one.jsonl", PAIRS[:4])
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress(b"".join(b'{"text": "text %d"}\n' % n for n in range(6))))
    data = {"train": [{"path": "one.jsonl", "weight": 2.0}, {"path": "two.jsonl.gz", "weight": 0.5}]}
    run, events = train(tmp_path, model, data=data, train={"max_steps": None, "epochs": 1})
    facts = jobs.manifest(run)
    assert facts["data"]["train"]["rows"] == 10
    assert facts["data"]["train"]["rows_an_epoch"] == 2 * 4 + 3
    assert facts["steps"] == 3  # eleven rows, four a step
    assert set(facts["data"]["files"]) == {str(tmp_path / name) for name in ("one.jsonl", "two.jsonl.gz")}
    assert len(jobs.losses(events)) == 3


# Bad rows, as the command line says them


GOOD = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}).encode()


def chat(*turns: tuple[str, Any]) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}).encode()


FAULTS: dict[str, tuple[str, bytes, str]] = {
    "broken JSON": ("rows.jsonl", GOOD + b'\n{"messages": [\n' + GOOD, "rows.jsonl:2: not JSON: "),
    "broken JSON far down": (
        "rows.jsonl", (GOOD + b"\n") * 2000 + GOOD[:-2] + b"\n", "rows.jsonl:2001: not JSON: ",
    ),
    "wrong column": ("rows.jsonl", GOOD + b'\n{"text": "a"}\n', "rows.jsonl:2: no list of messages (columns: text)"),
    "mixed types": ("rows.jsonl", GOOD + b"\n" + chat(("user", 3)), "rows.jsonl:2: message 1 has a number for content"),
    "an empty turn": (
        "rows.jsonl", GOOD + b"\n" + chat(("user", "q"), ("assistant", "")),
        "rows.jsonl:2: message 2 is an assistant turn that says nothing",
    ),
    "roles out of order": (
        "rows.jsonl", GOOD + b"\n" + chat(("assistant", "a"), ("user", "q")),
        "rows.jsonl:2: message 1 is the assistant's, and no question comes before it",
    ),
    "twice the same role": (
        "rows.jsonl", GOOD + b"\n" + chat(("user", "q"), ("user", "q")),
        "rows.jsonl:2: message 2 is the user's like the one before it",
    ),
    "a row of 10 MB": (
        "rows.jsonl", GOOD + b"\n" + chat(("user", "x" * 10 * MIB), ("assistant", "a")) + b"\n" + GOOD,
        "rows.jsonl:2: larger than 8 MiB",
    ),
    "broken JSON after CRLF": ("rows.jsonl", GOOD + b"\r\n\r\n{\r\n", "rows.jsonl:3: not JSON: "),
    "broken JSON after a BOM": ("rows.jsonl", b"\xef\xbb\xbf{\n" + GOOD, "rows.jsonl:1: not JSON: "),
    "invalid UTF-8": ("rows.jsonl", GOOD + b'\n{"messages": "\xff"}\n', "rows.jsonl:2: not UTF-8 at byte 14"),
    "an empty file": ("rows.jsonl", b"", "rows.jsonl: no rows"),
    "blank lines alone": ("rows.jsonl", b"\n \n\r\n", "rows.jsonl: no rows"),
    "a cut gzip": ("rows.jsonl.gz", gzip.compress((GOOD + b"\n") * 99)[:-12], "rows.jsonl.gz: broken or cut short"),
    "an empty table": ("rows.csv", b"", "rows.csv: no line of headings"),
    "a table's short row": ("rows.csv", b"prompt,completion\na,b\nc\n", "rows.csv:3: 1 cells under 2 headings"),
    "a table's invalid UTF-8": ("rows.csv", b"prompt,completion\na,b\nc,\xff\n", "rows.csv:3: not UTF-8 at byte 2"),
    "an empty cell": ("rows.csv", b"prompt,completion\na,b\nc,\n", "rows.csv:3: completion is empty"),
    "no Parquet": ("rows.parquet", b"PAR1", "rows.parquet: not a whole Parquet file"),
    "two formats": (
        "rows.jsonl", GOOD[:-1] + b', "text": "a"}\n',
        "rows.jsonl:1: the columns messages, text fit more than one format: messages, text",
    ),
    "no format": ("rows.jsonl", b'{"txt": "a"}\n', "rows.jsonl:1: the columns txt fit no format for causal_lm"),
    "an unknown ending": ("rows.xls", b"x", "rows.xls: not a kind of file that can be read"),
}  # fmt: skip


def cli(folder: Path, model: Path, **sections: Any) -> tuple[int, str]:
    sections["train"] = {**SHORT, **sections.get("train", {})}
    (folder / "r.yaml").write_text(jobs.recipe_text(folder, model, **sections))
    result = CliRunner().invoke(app, ["train", str(folder / "r.yaml")])
    return result.exit_code, result.stderr


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_rows_is_said_with_file_and_line(
    tmp_path: Path, model: Path, fault: str, streaming: bool
) -> None:
    name, data, said = FAULTS[fault]
    (tmp_path / name).write_bytes(data)
    code, err = cli(tmp_path, model, data={"train": name, "streaming": streaming})
    assert code == 3
    assert f"{tmp_path}/{said}" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_that_may_be_are_left_out_and_counted(tmp_path: Path, model: Path, streaming: bool) -> None:
    bad = [data for name, data, _ in FAULTS.values() if name == "rows.jsonl" and data.startswith(GOOD + b"\n")]
    lines = [line for data in bad if len(data) < 1000 for line in data.split(b"\n") if line] * 2
    lines += [b'{"text": "a"}', *[GOOD] * 5]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    data = {"train": "rows.jsonl", "streaming": streaming, "on_bad_row": "drop"}
    code, err = cli(tmp_path, model, data=data)
    assert code == 3
    assert "rows are bad" in err
    assert "more than data.max_bad_fraction 0.01 allows" in err
    assert f"{tmp_path}/rows.jsonl:2: not JSON" in err
    run, _ = train(tmp_path, model, "lenient", data={**data, "max_bad_fraction": 0.5})
    facts = rows_of(run)
    assert facts["read"] == facts["kept"] + sum(facts["dropped"].values())
    assert {"broken JSON", "not UTF-8", "roles out of order", "says nothing", "wrong columns", "wrong type"} == set(
        facts["dropped"]
    )
    if not streaming:
        assert facts["read"] == len(lines)
        assert facts["dropped"]["wrong columns"] == 3


def test_rows_left_out_leave_the_run_of_the_others(tmp_path: Path, model: Path) -> None:
    tiny.jsonl(tmp_path / "good.jsonl", PAIRS)
    text = (tmp_path / "good.jsonl").read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join(["{", *text[:5], "[]", *text[5:], '{"prompt": "x"}']))
    one, _ = train(tmp_path, model, "one", data={"train": "good.jsonl"})
    lenient = {"train": "bad.jsonl", "on_bad_row": "drop", "max_bad_fraction": 0.2}
    two, events = train(tmp_path, model, "two", data=lenient)
    assert bits(one) == bits(two)
    (said,) = [event for event in events if event["event"] == "data"]
    assert said["dropped"] == {"broken JSON": 1, "not an object": 1, "wrong columns": 1}


# Streams


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 16)


@pytest.mark.usefixtures("_small_blocks")
def test_a_stream_trains_and_says_what_it_read(tmp_path: Path, model: Path) -> None:
    tiny.jsonl(tmp_path / "rows.jsonl", [{**row, "n": n} for n, row in enumerate(PAIRS * 5)])
    data = {
        "train": [{"path": "rows.jsonl", "filter": "n % 3"}],
        "streaming": True,
        "eval": {"count": 4},
    }
    run, events = train(tmp_path, model, "one", data=data, train={"max_steps": 9})
    facts = jobs.manifest(run)
    assert facts["steps"] == 9
    of_train = facts["data"]["train"]
    assert of_train["read"] == of_train["kept"] + of_train["filtered"] + of_train["held_out"]
    assert of_train["rows"] >= 36
    assert facts["data"]["eval"]["kept"] == 4
    assert facts["metrics"]["loss"] > 0
    assert facts["data"]["files"] == {str(tmp_path / "rows.jsonl"): atomic.sha256(tmp_path / "rows.jsonl")}
    said = {event["source"]: event for event in events if event["event"] == "data"}
    assert said["train"]["rows"] == 16  # of the first block
    assert said["eval"]["kept"] == 4
    again = job.train(load(run / "resolved.yaml", str(tmp_path / "again")), "", Events())
    assert bits(again) == bits(run)
    other, _ = train(tmp_path, model, "other", data=data, train={"max_steps": 9, "seed": 1})
    assert bits(other) != bits(run)


def test_a_stream_needs_steps(tmp_path: Path, model: Path) -> None:
    code, err = cli(tmp_path, model, data={"streaming": True}, train={"max_steps": None, "epochs": 1})
    assert code == 2
    assert "needs train.max_steps" in err


# The cache


def test_a_second_run_parses_no_rows_and_gives_the_same_bits(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(12))
    sections: dict[str, Any] = {"data": {"eval": {"count": 3}}, "eval": {"choices": ["odd", "even"]}}
    one, first = train(tmp_path, model, "one", **sections)
    read: list[int] = []
    real = readers.read

    def counted(where: str, file: Any) -> Iterator[Any]:
        for found in real(where, file):
            read.append(1)
            yield found

    monkeypatch.setattr(readers, "read", counted)
    two, second = train(tmp_path, model, "two", data={}, train={"seed": 0})
    assert bits(one) != bits(two)  # other rows: none is held out
    read.clear()
    three, third = train(tmp_path, model, "three", data={})
    assert len(read) == 1  # the first row, for its format
    assert bits(two) == bits(three)
    read.clear()
    four, fourth = train(tmp_path, model, "four", **sections)
    assert len(read) == 1 + 12  # choices are asked of the rows as they were written
    assert bits(one) == bits(four)
    assert jobs.manifest(one)["metrics"] == jobs.manifest(four)["metrics"]
    cached = [[event["cached"] for event in events if event["event"] == "data"] for events in (first, second, third)]
    assert cached == [[False, False], [False], [True]]
    assert [event["cached"] for event in fourth if event["event"] == "data"] == [True, True]


# Templates


def test_a_template_from_a_file_goes_with_the_run(tmp_path: Path, model: Path) -> None:
    from transformers import AutoTokenizer

    text = "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
    text += "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    (tmp_path / "own.jinja").write_text(text)
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(12))
    run, _ = train(tmp_path, model, "one", data={"template": "own.jinja"})
    (tmp_path / "own.jinja").unlink()
    assert load(run / "resolved.yaml").data.template == text
    again = job.train(load(run / "resolved.yaml", str(tmp_path / "again")), "", Events())
    assert bits(again) == bits(run)
    assert AutoTokenizer.from_pretrained(run / "adapter").chat_template == text
    without, _ = train(tmp_path, model, "two")
    assert bits(without) != bits(run)
