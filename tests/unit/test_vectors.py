"""sentence-transformers' files go with vectors that are made as they say, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftctl.merge import vectors


def described(folder: Path, path: str = "1_Pooling", **pooling: Any) -> Path:
    kinds = [("Transformer", ""), ("Pooling", path), ("Normalize", "2_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": where} for kind, where in kinds]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    ("said", "pooling", "goes"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean", True),
        ({"pooling_mode": "cls"}, "cls", True),
        ({"pooling_mode_mean_tokens": True}, "last", False),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean", False),
        ({"pooling_mode_mean_tokens": True}, "", False),
    ],
)
def test_they_go_where_they_say_how_vectors_are_made(
    tmp_path: Path, said: dict[str, Any], pooling: str, goes: bool
) -> None:
    base, folder = described(tmp_path / "base", **said), tmp_path / "merged"
    folder.mkdir()
    vectors.copy(base, folder, pooling)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == ({"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"} if goes else set())


def test_a_description_that_is_damaged_or_leads_elsewhere_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    vectors.copy(described(tmp_path / "one", "../one/1_Pooling", pooling_mode="mean"), folder, "mean")
    base = described(tmp_path / "two", pooling_mode="mean")
    for damaged in ("{", "[1]", '[{"type": 1, "path": ""}]', '[{"type": "Pooling", "path": 7}]'):
        (base / "modules.json").write_text(damaged)
        vectors.copy(base, folder, "mean")
    base = described(tmp_path / "three", pooling_mode="mean")
    (base / "1_Pooling" / "config.json").write_text("[]")
    vectors.copy(base, folder, "mean")
    assert list(folder.iterdir()) == []
