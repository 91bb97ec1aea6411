"""Exports on a hub of this machine: what is uploaded, with which card, and what is said where it cannot be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from peftctl import card
from peftctl.cli import app
from peftctl.exporters import push
from peftctl.exporters.export import Asked, export
from peftctl.run import Run, open_run
from tests import fake_hub, jobs, tiny
from tests.fake_hub import REPO, SECRET, FakeHub

# huggingface_hub 2.4 hands httpx2 the files it puts by a name of old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub without the repo yet, and huggingface_hub pointed at it with a token."""
    with fake_hub.pointed(FakeHub({}, {}), monkeypatch, tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    base = tiny.save(folder / "llama")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n\n# Llama\n")
    return jobs.train(folder, base, data={"eval": {"path": "train.jsonl"}}, method={"rank": 4, "rslora": True})[0]


def peftctl(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def files(hub: FakeHub) -> dict[str, bytes]:
    return hub.commits[hub.branches["main"]]


def front(text: str) -> Any:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_what_was_exported_is_pushed_in_one_commit(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    out = tmp_path / "out"
    code, said, err = peftctl(run, out, "--to", "adapter", "--push", REPO)
    assert code == 0, err
    commit = hub.branches["main"]
    assert said == f"{out}: adapter, verified: yes\n{REPO}: {hub.endpoint}/{REPO}/commit/{commit}\n"
    assert len(hub.commits) == 2  # the repo's first, and this
    assert hub.made == [{"name": "tiny", "organization": "acme"}]
    assert hub.tokens == {SECRET}
    assert files(hub).keys() == {file.name for file in out.iterdir()} | {".gitattributes"}
    assert files(hub)["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
    assert hub.put[hashlib.sha256(files(hub)["tokenizer.json"]).hexdigest()] == files(hub)["tokenizer.json"]


def test_the_folder_here_stays_as_it_was_published(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    facts = export(open_run(run), tmp_path / "alone", Asked("adapter"))
    code, said, _ = peftctl(run, tmp_path / "out", "--to", "adapter", "--push", REPO, "--json")
    told = json.loads(said)
    assert code == 0
    assert told.pop("push") == {
        "repo": REPO,
        "url": f"{hub.endpoint}/{REPO}/commit/{hub.branches['main']}",
        "commit": hub.branches["main"],
        "private": False,
    }
    assert told == json.loads((tmp_path / "out" / "manifest.json").read_text()) == json.loads(json.dumps(facts))


@pytest.mark.parametrize("to", ["adapter", "merged"])
def test_the_card_says_what_it_is_of_what_and_how_it_was_trained(
    run: Path, tmp_path: Path, hub: FakeHub, to: str
) -> None:
    assert peftctl(run, tmp_path / "out", "--to", to, "--push", REPO)[0] == 0
    text = files(hub)["README.md"].decode()
    library = "peft" if to == "adapter" else "transformers"
    said = {"library_name": library, "pipeline_tag": "text-generation", "license": "apache-2.0"}
    assert front(text) == {**said, "tags": ["peftctl", "lora"]}  # its base is no hub's, so it is not named there
    metrics = jobs.manifest(run)["metrics"]
    for part in (
        "- method: lora, rank 4, alpha 8, rslora true",
        "- base: llama\n",
        "- data: train.jsonl, SHA-256 ",
        "- rows: 24",
        "- steps: 3",
        f"- held-out loss: {metrics['loss']:.4g}",
        "- versions: peftctl 0.1.0, torch ",
        "That of the base, as its card says: apache-2.0.",
    ):
        assert text.count(part) == 1, part
    if to == "adapter":
        assert f'from_pretrained("{REPO}")' in text


def test_nothing_that_is_uploaded_names_a_place_on_this_machine(
    run: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for number, form in enumerate((["adapter"], ["merged"], ["vllm"], ["vllm", "--type", "adapter"])):
        out = tmp_path / f"out-{number}"
        assert peftctl(run, out, "--to", *form, "--push", REPO)[0] == 0
        held = {name: content for name, content in files(hub).items() if name != ".gitattributes"}
        for place in (tmp_path, run, run.parent):
            assert [name for name, content in held.items() if str(place).encode() in content] == []
        told = json.loads(held["manifest.json"])
        assert (told["run"], told["base"]["name"]) == ("run", "llama")
        for name, entry in told["files"].items():
            assert entry == {"size_bytes": len(held[name]), "sha256": hashlib.sha256(held[name]).hexdigest()}, name
    assert "vllm serve llama --enable-lora --lora-modules run=acme/tiny" in held["README.md"].decode()
    assert json.loads(held["adapter_config.json"])["base_model_name_or_path"] == "llama"


def test_pushed_again_it_is_not_exported_again_and_a_commit_is_made_only_of_what_differs(
    run: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (run, tmp_path / "out", "--to", "adapter", "--push", REPO)
    assert peftctl(*words)[0] == 0
    first, put = hub.branches["main"], dict(hub.put)
    monkeypatch.setattr("peftctl.exporters.adapter.Adapter.write", lambda *_: pytest.fail("exported again"))
    code, said, err = peftctl(*words)
    assert code == 0
    assert "holds this already" in err
    assert f"{REPO}/commit/{first}\n" in said
    assert (hub.branches["main"], hub.put) == (first, put)
    files(hub)["other.bin"] = b"mine"
    files(hub)["README.md"] = b"edited on the hub"
    code, _, err = peftctl(*words)
    assert "also holds other.bin, which this export does not, and keeps it" in err
    assert files(hub)["other.bin"] == b"mine"
    assert files(hub)["README.md"].startswith(b"---\n")


def test_private_makes_a_private_repo_and_refuses_a_public_one(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    words = (run, tmp_path / "out", "--to", "adapter", "--push", REPO, "--private")
    code, said, _ = peftctl(*words, "--json")
    assert (code, json.loads(said)["push"]["private"]) == (0, True)
    assert hub.made == [{"name": "tiny", "organization": "acme", "visibility": "private"}]
    assert peftctl(*words)[0] == 0
    hub.private, before = False, dict(hub.commits)
    code, _, err = peftctl(*words)
    assert code == 2
    assert f"--private: has no effect on {REPO}, which exists and is public; nothing was pushed" in err
    assert hub.commits == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--push", "tiny"], 2, "(found 'tiny'); allowed: OWNER/REPO"),
        (["--push", "a/b/c"], 2, "allowed: OWNER/REPO"),
        (["--push", "acme/ti ny"], 2, "allowed: OWNER/REPO"),
        (["--push", ""], 2, "allowed: OWNER/REPO"),
        (["--private"], 2, "--private: has no effect without --push"),
    ],
    ids=str,
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, hub: FakeHub, words: list[str], code: int, said: str
) -> None:
    found, _, err = peftctl(run, tmp_path / "out", "--to", "adapter", *words)
    assert (found, said in err) == (code, True), err
    assert not (tmp_path / "out").exists()
    assert hub.requests == []


@pytest.mark.parametrize("lacking", ["token", "network"])
def test_without_a_token_or_offline_nothing_is_written(
    run: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    if lacking == "token":
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = peftctl(run, tmp_path / "out", "--to", "adapter", "--push", REPO)
    wanted = ("HF_TOKEN", "`hf auth login`") if lacking == "token" else ("HF_HUB_OFFLINE is set",)
    assert code == 4
    assert [word for word in wanted if word not in err] == []
    assert not (tmp_path / "out").exists()
    assert hub.requests == []


def test_a_token_that_is_stored_will_do(
    run: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(SECRET)
    assert peftctl(run, tmp_path / "out", "--to", "adapter", "--push", REPO)[0] == 0
    assert hub.tokens == {SECRET}


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((401, "", f"Invalid token {SECRET}"), "the hub does not know the token (401)"),
        ((403, "", f"{SECRET} may not write"), "may not write there, or there is no acme (403)"),
        ((404, "RepoNotFound", ""), "may not write there, or there is no acme (404)"),
        ((503, "", ""), "the upload broke off (the hub answered 503)"),
        ((418, "", ""), "did not take it (418)"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_told_with_what_stands(
    run: Path, tmp_path: Path, hub: FakeHub, refusal: tuple[int, str, str], said: str
) -> None:
    hub.refuse = refusal
    words = (run, tmp_path / "out", "--to", "adapter", "--push", REPO)
    code, _, err = peftctl(*words)
    assert (code, said in err) == (4, True), err
    assert f"{tmp_path / 'out'} stands as it is, and the same command again pushes it" in err
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    hub.refuse = None
    code, _, err = peftctl(*words)
    assert (code, "holds this already" in err) == (0, True)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("how", ["midway", "unreachable"])
def test_a_connection_that_breaks_off_leaves_the_folder_to_push_again(
    run: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    words = (run, tmp_path / "out", "--to", "adapter", "--push", REPO)
    with monkeypatch.context() as patch:
        if how == "midway":
            hub.break_puts = True
        else:
            patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        code, said, err = peftctl(*words)
    assert (code, "the upload broke off" in err) == (4, True), err
    assert "stands as it is" in err
    assert said == f"{tmp_path / 'out'}: adapter, verified: yes\n"
    assert files(hub).keys() == {".gitattributes"} if how == "midway" else not hub.commits
    hub.break_puts = False
    assert peftctl(*words)[0] == 0
    assert "adapter_model.safetensors" in files(hub)


def test_a_path_in_the_home_loses_the_way_to_it_wherever_it_stands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "höme" / "ann"))
    home = Path.home()
    said = {
        "file": f"{home}/more data/x.gguf",
        "is": str(home),
        "anna": f"{home}a/x",
        "at": [f"see {home}/a/b/c, and /usr/lib/d"],
    }
    out = tmp_path / "out"
    out.mkdir()
    (out / "said.json").write_text(json.dumps(said, ensure_ascii=False))
    (out / "escaped.json").write_text(json.dumps(said))
    (out / "plain.txt").write_text("nothing of it")
    (out / "weights.bin").write_bytes(b"\xff" + str(home).encode())
    facts = {"to": "adapter", "run": str(run), "files": {file.name: {} for file in out.iterdir()}}
    made = push.portable(open_run(run), out, facts, {}, REPO)
    wanted = {"file": "more data/x.gguf", "is": "~", "anna": f"{home}a/x", "at": ["see c, and /usr/lib/d"]}
    for name in ("said.json", "escaped.json"):
        content = made[name]
        assert isinstance(content, bytes)
        assert json.loads(content) == wanted, name
    assert (made["plain.txt"], made["weights.bin"]) == (out / "plain.txt", out / "weights.bin")


def test_the_licence_of_a_base_of_the_hub_is_asked_of_the_hub(run: Path, hub: FakeHub) -> None:
    hub.commits["c" * 40] = {"config.json": b"{}"}
    hub.card = {"license": "other", "license_name": "acme-1", "license_link": "LICENSE"}
    found = push._licence(of_the_hub(open_run(run), REPO))
    assert found == {**hub.card, "license_link": f"{hub.endpoint}/{REPO}/blob/main/LICENSE"}
    hub.refuse = (403, "", "")
    assert push._licence(of_the_hub(open_run(run), REPO)) == {}


def of_the_hub(run: Run, name: str = "acme/base") -> Run:
    """The same run, as though its base and data had come from the hub."""
    base = {**run.manifest["base"], "name": name, "origin": "hub", "commit": "c" * 40}
    data = {**run.manifest["data"], "files": {}, "hub": {"acme/rows": "d" * 40}}
    return Run(run.path, run.recipe, {**run.manifest, "base": base, "data": data})


def test_a_base_and_data_of_the_hub_are_named_for_the_hub(run: Path, tmp_path: Path) -> None:
    hubs = of_the_hub(open_run(run))
    facts = export(hubs, tmp_path / "out", Asked("adapter"))
    made = push.portable(hubs, tmp_path / "out", facts, {}, REPO)["README.md"]
    assert isinstance(made, bytes)
    said = front(made.decode())
    assert (said["base_model"], said["base_model_relation"]) == ("acme/base", "adapter")
    assert said["datasets"] == ["acme/rows"]
    assert "license" not in said
    assert f"- data: acme/rows, revision {'d' * 40}" in made.decode()
    assert "Not known: no card of the base names one." in made.decode()


def test_a_licence_of_its_own_keeps_its_name_and_gets_a_whole_link() -> None:
    said = {"license": "other", "license_name": "acme-1", "license_link": "LICENSE.md", "tags": ["x"]}
    page = "https://hub.invalid/acme/base"
    found = card.licence(said, page)
    assert found == {"license": "other", "license_name": "acme-1", "license_link": f"{page}/blob/main/LICENSE.md"}
    assert "license_link" not in card.licence(said, "")
    assert card.licence({"license_link": "https://a.invalid/b"}, "") == {"license_link": "https://a.invalid/b"}
