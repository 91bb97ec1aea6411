"""What a person sees: every kind of event as its lines, errors with their hints, and JSON that is JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftctl import console
from peftctl.errors import DataError, RecipeError
from peftctl.events import Events, MetricsLog

STEP = {
    "event": "step", "step": 7, "steps": 120, "loss": 1.23456, "learning_rate": 2e-4, "tokens": 900,
    "supervised_tokens": 400, "tokens_per_s": 1234.5, "grad_norm": 0.5, "peak_memory_bytes": 2_345_000_000,
    "epoch": 0.5, "seconds_per_step": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (9, "0:09"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599, "59:59"),
        (3599.7, "1:00:00"),
        (3661, "1:01:01"),
        (360000, "100:00:00"),
    ],
)
def test_a_clock_counts_in_sixties(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        ({"event": "stage", "name": "data", "detail": "24 rows"}, ["data     24 rows"]),
        (
            {"event": "data", "source": "train", "read": 1200, "kept": 1197, "dropped": {}, "tokens": 50000,
             "supervised_tokens": 7000, "longest": 1024},
            ["         train: 1,197 of 1,200 rows, 50,000 tokens, 7,000 of them learned, longest 1,024"],
        ),
        (
            {"event": "data", "source": "eval", "read": 9, "kept": 5, "dropped": {"too long": 3, "empty": 1},
             "tokens": 50, "supervised_tokens": 7, "longest": 10},
            ["         eval: 5 of 9 rows (dropped: 3 too long, 1 empty), 50 tokens, 7 of them learned, longest 10"],
        ),
        (STEP, ["step     7/120  loss 1.2346  lr 2.00e-04  1,234 tok/s  2.3 GB  3:46 left"]),
        (STEP | {"loss": None, "step": 120},
         ["step   120/120  loss not finite  lr 2.00e-04  1,234 tok/s  2.3 GB  0:00 left"]),
        ({"event": "eval", "step": 3, "loss": 0.25, "perplexity": 1.284025, "rows": 7},
         ["eval     step 3: loss 0.25  perplexity 1.284"]),
        (
            {"event": "eval", "step": 3, "loss": 0.5,
             "likeliest": {"accuracy": 0.75, "macro_f1": 2 / 3, "f1": {"a": 1.0}, "rows": 4}},
            ["eval     step 3: loss 0.5  likeliest: accuracy 0.750, macro F1 0.667"],
        ),
        ({"event": "skipped", "step": 3, "reason": "loss nan"}, ["warning: step 3 made no update: loss nan"]),
        ({"event": "warning", "message": "look"}, ["note: look"]),
        ({"event": "done", "path": "/run", "seconds": 75.2}, ["done     /run in 1:15"]),
    ],
)  # fmt: skip
def test_each_kind_of_event_is_said_so(event: dict[str, Any], lines: list[str]) -> None:
    assert console.lines(event) == lines


MODEL = {
    "event": "model", "parameters": 134_515_008, "trainable": 1_345_150, "dtype": "bfloat16", "device": "cpu",
    "targets": ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.0.v_proj"], "beside": {},
}  # fmt: skip


def test_a_model_is_said_with_its_share_of_trained_parameters() -> None:
    assert console.lines(MODEL) == [
        "         134.5M parameters, 1.35M trained (1 %), bfloat16 on cpu",
        "         targets: model.layers.*.q_proj x2, model.layers.*.v_proj x1",
    ]


def test_what_is_trained_beside_the_targets_is_said_with_its_shape() -> None:
    beside = {"lm_head.weight": [264, 32], "layers.0.experts.up": [4, 8, 32], "layers.1.experts.up": [4, 8, 32]}
    assert console.lines(MODEL | {"beside": beside})[1:] == [
        "         targets: model.layers.*.q_proj x2, model.layers.*.v_proj x1",
        "         beside: lm_head.weight [264, 32] x1, layers.*.experts.up [4, 8, 32] x2",
    ]
    alone = console.lines(MODEL | {"targets": [], "beside": {"layers.0.norm.weight": [32]}})
    assert alone[1:] == ["         trained: layers.*.norm.weight [32] x1"]


@pytest.mark.parametrize(
    ("trainable", "percent"), [(134_515_008, "100"), (134_500_000, "100"), (13_451_500, "10"), (67_000_000, "49.8")]
)
def test_a_large_share_is_said_in_plain_digits(trainable: int, percent: str) -> None:
    [line, *rest] = console.lines(MODEL | {"trainable": trainable, "targets": [], "beside": {}})
    assert f" trained ({percent} %), " in line
    assert rest == []


def test_of_a_model_that_is_trained_whole_no_parts_are_listed() -> None:
    whole = MODEL | {"trainable": MODEL["parameters"], "targets": [], "beside": {"lm_head.weight": [264, 32]}}
    assert len(console.lines(whole)) == 1


def test_off_a_terminal_events_are_plain_lines_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "tralala1")
    with console.watch(as_json=False) as listener:
        listener({"event": "warning", "message": "with tralala1 and [bold]brackets[/] " + "x" * 300})
    assert capsys.readouterr().out == "note: with <MY_TOKEN> and [bold]brackets[/] " + "x" * 300 + "\n"


def test_as_json_each_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    with console.watch(as_json=True) as listener:
        listener(STEP)
        listener({"event": "done", "path": Path("/né"), "text": "a\nb"})
    lines = capsys.readouterr().out.split("\n")
    assert json.loads(lines[0]) == STEP
    assert json.loads(lines[1]) == {"event": "done", "path": "/né", "text": "a\nb"}
    assert lines[2:] == [""]


def test_an_error_goes_to_standard_error_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error(DataError("rows:1: [red]no[/] " + "x" * 200, "look at it"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: rows:1: [red]no[/] " + "x" * 200 + "\nhint: look at it\n"


def test_an_error_without_a_hint_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error(RecipeError([]))
    assert "hint" not in capsys.readouterr().err


def test_results_go_to_standard_output_and_notes_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a [b] result")
    console.note("a [b] note")
    console.piece("half ")
    console.piece("a line")
    shown = capsys.readouterr()
    assert shown.out == "a [b] result\nhalf a line"
    assert shown.err == "a [b] note\n"


def test_a_table_keeps_its_columns_apart(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["", "loss", "accuracy"], [["base", "1.5", "0.500"], ["adapter", "0.25", "1.000"]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["loss", "accuracy"], ["base", "1.5", "0.500"], ["adapter", "0.25", "1.000"]]


def test_every_listener_hears_every_event_in_order(tmp_path: Path) -> None:
    heard: list[tuple[str, Any]] = []
    events = Events(lambda event: heard.append(("first", dict(event))))
    events.emit("stage", name="a", detail="b")
    events.add(lambda event: heard.append(("second", dict(event))))
    events.emit("warning", message="m")
    assert heard == [
        ("first", {"event": "stage", "name": "a", "detail": "b"}),
        ("first", {"event": "warning", "message": "m"}),
        ("second", {"event": "warning", "message": "m"}),
    ]


def test_the_metrics_log_keeps_every_event_as_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    events = Events(log)
    events.emit("warning", message="né\nzwei")
    assert not path.exists()  # what is said before a run has begun is kept back
    log.begin()
    assert json.loads(path.read_text("utf-8")) == {"event": "warning", "message": "né\nzwei"}
    events.emit("done", path=Path("/x"), seconds=1.5)
    assert [json.loads(line)["event"] for line in path.read_text("utf-8").splitlines()] == ["warning", "done"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        events.emit("step", loss=float("nan"))
    assert len(path.read_text("utf-8").splitlines()) == 2
