"""A sample of the calls that ``scripts/proofs crash`` takes all of; and that what is published is on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import harness, scenes

SAMPLE = 4


@pytest.mark.slow
@pytest.mark.parametrize("name", scenes.SCENES)
def test_killed_or_failed_at_any_call_the_same_command_ends_with_the_same_bits(
    tmp_path: Path, tiny_model: Path, name: str
) -> None:
    scene = scenes.SCENES[name](tmp_path, tiny_model)
    scene.prepare()
    assert harness.attempt(scene.action, None).code == 0
    expected = scene.judge()
    scene.prepare()
    calls = harness.record(scene.action, scene.work)
    assert {"write", "fsync", "rename"} <= {call.name for call in calls}
    points = [(call, fault) for call in calls for fault in call.faults]
    for at in range(SAMPLE):
        scenes.play(scene, *points[at * (len(points) - 1) // (SAMPLE - 1)], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", scenes.SCENES)
def test_what_gets_its_name_is_on_the_disk_already(tmp_path: Path, tiny_model: Path, name: str) -> None:
    """Every file written below a folder is synced after its last write, before the folder is renamed; then so is the
    folder that it is in."""
    scene = scenes.SCENES[name](tmp_path, tiny_model)
    scene.prepare()
    calls = harness.record(scene.action, scene.work)
    unsynced: set[str] = set()
    renamed = 0
    for at, call in enumerate(calls):
        path, *rest = call.what.split()
        if call.name in ("write", "pwrite64", "ftruncate"):
            unsynced.add(path)
        elif call.name in ("fsync", "fdatasync") or call.name.startswith("unlink"):
            unsynced.discard(path)
        elif call.name.startswith("rename") and rest and not rest[-1].endswith(".partial"):
            left = {each for each in unsynced if each == path or each.startswith(f"{path}/")}
            if ".partial/" in rest[-1]:  # within a folder that is not complete yet, as safetensors does it
                unsynced = unsynced - left | {rest[-1] for _ in left}
                continue
            renamed += 1
            assert not left, call
            parent = rest[-1].rpartition("/")[0] or str(scene.work)
            assert parent in [each.what for each in calls[at:] if each.name == "fsync"], call
    assert renamed
