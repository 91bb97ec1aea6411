"""Crash logs: all that a report needs, and no secret."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from peftctl import __version__, crashlog


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if crashlog.SECRET_NAMES.search(name):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "my_secret", "DB_PASSWORD", "PASSWD", "AWS_CREDENTIALS", "X_AUTH"]
)
def test_the_value_of_a_secret_sounding_variable_is_replaced_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "s3cret-value")
    assert crashlog.redact("with s3cret-value twice: s3cret-value.") == f"with <{name}> twice: <{name}>."


def test_other_variables_and_short_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECT", "elephant")
    monkeypatch.setenv("SOME_TOKEN", "false")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    assert crashlog.redact("the elephant is false") == "the elephant is false"


@pytest.mark.parametrize("names", [("A_TOKEN", "B_TOKEN"), ("B_TOKEN", "A_TOKEN")])
def test_a_secret_that_begins_with_another_is_replaced_whole(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    monkeypatch.setenv(names[0], "abcdef")
    monkeypatch.setenv(names[1], "abcdef-and-more")
    said = crashlog.redact("it is abcdef-and-more here")
    assert "more here" not in said
    assert "abcdef" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("use hf_AbCdEfGhIjKlMnOp now", "use <secret> now"),
        ("key=sk-proj_0123456789abcdefXYZ;", "key=<secret>;"),
        ("https://me:pass@host/x", "https://<secret>@host/x"),
        ("https://host:8080/x", "https://host:8080/x"),
        ("hf_hub_download failed", "hf_hub_download failed"),
        ("task-specific sk-learn", "task-specific sk-learn"),
        ("", ""),
    ],
)
def test_what_looks_like_a_secret_goes_and_what_does_not_stays(text: str, said: str) -> None:
    assert crashlog.redact(text) == said


def raised() -> ValueError:
    try:
        raise ValueError("it broke with hf_AbCdEfGhIjKlMnOp")
    except ValueError as error:
        return error


def test_the_log_holds_versions_command_and_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MY_TOKEN", "tralala1")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/peftctl", "train", "tralala1.yaml"])
    path = crashlog.write(raised())
    text = path.read_text("utf-8")
    assert path.parent == tmp_path / "cache" / "logs"
    assert text.startswith(f"peftctl {__version__}, Python 3.")
    assert f"torch {crashlog._version('torch')}" in text
    assert "command: peftctl train <MY_TOKEN>.yaml\n" in text
    assert "Traceback (most recent call last)" in text
    assert "ValueError: it broke with <secret>" in text
    assert "hf_AbC" not in text


def test_a_package_that_is_not_there_is_absent() -> None:
    assert crashlog._version("no-such-package-anywhere") == "absent"


def test_a_log_is_written_though_an_argument_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name that is no UTF-8 reaches Python as a lone surrogate; the log of a crash must not crash on it."""
    monkeypatch.setattr(sys, "argv", ["peftctl", "train", os.fsdecode(b"r\xff.yaml")])
    assert "command: peftctl train r" in crashlog.write(raised()).read_text("utf-8")
