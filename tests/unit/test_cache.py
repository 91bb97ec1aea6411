"""Where the user's cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftctl.cache import cache_home
from peftctl.errors import MachineError


def test_the_most_particular_variable_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTCTL_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_home() == tmp_path / "own"
    monkeypatch.delenv("PEFTCTL_CACHE")
    assert cache_home() == tmp_path / "xdg" / "peftctl"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_home() == tmp_path / "home" / ".cache" / "peftctl"
    assert all(path.is_dir() for path in (tmp_path / "own", tmp_path / "xdg/peftctl", tmp_path / "home/.cache/peftctl"))


def test_a_file_in_its_place_is_named_with_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        monkeypatch.setenv("PEFTCTL_CACHE", str(tmp_path / place))
        with pytest.raises(MachineError, match="cannot be the cache") as error:
            cache_home()
        assert "PEFTCTL_CACHE" in error.value.hint
