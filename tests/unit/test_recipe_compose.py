"""A recipe from parts: what it extends, what `--set` overrides, what the environment fills in; and who wins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from peftctl import console
from peftctl.errors import RecipeError
from peftctl.recipe import Recipe, able, check, dump, dump_resolved, load, nodes
from peftctl.recipe.schema import TrainSettings

# Five lines; what a test adds begins at line 6.
BASE = "model: m\ndata:\n  train: t.jsonl\nmethod: lora\noutput: out\n"
FORM = "is not of the form key.path=value; allowed: train.epochs=1, for example"
TRAIN = ", ".join(TrainSettings.model_fields)
SECRET = "tralala-secret"


def write(folder: Path, **files: str) -> Path:
    """The files ``name.yaml``; the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def faults(folder: Path, overrides: Sequence[str] = (), **files: str) -> list[str]:
    with pytest.raises(RecipeError) as refused:
        load(write(folder, **files), overrides=overrides)
    return str(refused.value).replace(f"{folder}/", "").split("\n")


# extends


def test_a_chain_of_three_is_joined_key_by_key_and_the_last_wins(tmp_path: Path) -> None:
    made = load(
        write(
            tmp_path,
            a="extends: b.yaml\ntrain: {seed: 1}\n",
            b="extends: c.yaml\ntrain: {seed: 2, epochs: 2}\noutput: b\n",
            c=BASE + "train: {seed: 3, epochs: 3, batch_size: 3}\n",
        )
    )
    assert (made.train.seed, made.train.epochs, made.train.batch_size) == (1, 2, 3)
    assert (made.output, made.model.name) == ("b", "m")
    keys = ("train.seed", "train.epochs", "train.batch_size", "output", "model.name")
    assert [made.origins[key] for key in keys] == [
        "a.yaml", "b.yaml", "c.yaml", "b.yaml", "c.yaml",
    ]  # fmt: skip
    assert made.folder == tmp_path


def test_lists_are_replaced_whole(tmp_path: Path) -> None:
    base = BASE.replace("t.jsonl", "[{path: a, limit: 3}, b]")
    path = write(tmp_path, r="extends: base.yaml\ndata: {train: [{path: c}]}\n", base=base)
    assert [(source.path, source.limit) for source in load(path).data.train] == [("c", None)]


def test_a_word_and_a_section_are_joined(tmp_path: Path) -> None:
    base = BASE.replace("model: m", "model: {name: m, dtype: float32}").replace("lora", "{name: lora, rank: 3}")
    made = load(write(tmp_path, r="extends: base.yaml\nmodel: n\nmethod: {dropout: 0.5}\n", base=base))
    assert (made.model.name, made.model.dtype) == ("n", "float32")
    assert made.method.model_dump(include={"name", "rank", "dropout"}) == {"name": "lora", "rank": 3, "dropout": 0.5}


def test_nothing_takes_back_what_the_base_says(tmp_path: Path) -> None:
    base = BASE.replace("  train: t.jsonl", "  train: t.jsonl\n  eval: {split: 0.5}") + "train: {epochs: 2}\n"
    made = load(write(tmp_path, r="extends: base.yaml\ndata: {eval: null}\ntrain: {epochs: ~}\n", base=base))
    assert (made.data.eval, made.train.epochs) == (None, None)


def test_an_anchor_holds_in_its_own_file(tmp_path: Path) -> None:
    base = BASE.replace("  train: t.jsonl", "  train: &rows {path: t.jsonl, limit: 3}\n  eval: {<<: *rows, path: e}")
    made = load(write(tmp_path, r="extends: base.yaml\ndata: {train: [&x {path: x}, *x]}\n", base=base))
    assert [source.path for source in made.data.train] == ["x", "x"]
    assert made.data.eval is not None
    assert (made.data.eval.path, made.data.eval.limit) == ("e", 3)
    assert faults(tmp_path, r="extends: base.yaml\ntrain: *rows\n", base=base) == [
        "r.yaml:2:8: not YAML: found undefined alias 'rows'"
    ]


def test_a_base_alone_need_not_be_whole_and_faults_stand_in_the_file_they_are_in(tmp_path: Path) -> None:
    base = "model: m\ndata:\n  train: t.jsonl\ntrain:\n  sed: 1\n  epochs: 1\n"
    assert faults(tmp_path, r="extends: base.yaml\nmethod: lora\ntrain: {max_steps: 3, seed: -1}\n", base=base) == [
        f"base.yaml:5:3: train.sed: no such setting; allowed: {TRAIN}; did you mean seed?",
        "base.yaml:6:3: train.epochs: and train.max_steps both say how long to train (see also r.yaml:3:9)",
        "r.yaml:1:1: output: is missing (a recipe needs model, data, method, output)",
        "r.yaml:3:23: train.seed: out of range (found -1); allowed: at least 0",
    ]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"a": "extends: a.yaml\n"}, "a.yaml:1:1: extends: goes round in a circle: a.yaml -> a.yaml"),
        (
            {"a": "extends: b.yaml\n", "b": "\nextends: c.yaml\n", "c": "x: 1\nextends: ./b.yaml\n"},
            "c.yaml:2:1: extends: goes round in a circle: a.yaml -> b.yaml -> c.yaml -> b.yaml",
        ),
        (
            {"a": "extends: nowhere.yaml\n"},
            "a.yaml:1:1: extends: nowhere.yaml cannot be read: No such file or directory",
        ),
        (
            {"a": "extends: b.yaml\n", "b": "extends: bass.yaml\n", "base": BASE},
            "b.yaml:1:1: extends: bass.yaml cannot be read: No such file or directory; did you mean base.yaml?",
        ),
        ({"a": "extends: .\n"}, "a.yaml:1:1: extends: {folder} is a folder, not a recipe"),
        (
            {"a": "extends: b.yaml\n", "b": "#" * 100_001},
            "a.yaml:1:1: extends: b.yaml too large for a recipe (found 100,001 bytes); allowed: 100 kB",
        ),
        ({"a": "extends: b.yaml\n", "b": "model: [\n"}, "b.yaml:2:1: not YAML: while parsing a flow node expected the "
         "node content, but found '<stream end>'"),
        ({"a": "extends: [b.yaml]\n"}, "a.yaml:1:1: extends: must be the path of one recipe"),
        ({"a": "extends: 3\n"}, "a.yaml:1:1: extends: must be the path of one recipe"),
        ({"a": "extends: ~no-such-user/b.yaml\n"},
         "a.yaml:1:1: extends: ~no-such-user/b.yaml cannot be read: No such file or directory"),
        ({"a": f"extends: {'x' * 300}\n"}, f"a.yaml:1:1: extends: {'x' * 300} cannot be read: File name too long"),
        ({"a": f"extends: {'x' * 300}/b.yaml\n"},
         f"a.yaml:1:1: extends: {'x' * 300}/b.yaml cannot be read: File name too long"),
        ({"a": 'extends: "b\\0.yaml"\n'}, "a.yaml:1:10: extends: holds the character '\\x00', which no setting can"),
    ],
)  # fmt: skip
def test_what_cannot_be_extended_is_said_exactly_so(tmp_path: Path, files: dict[str, str], fault: str) -> None:
    assert faults(tmp_path, **files) == [fault.replace("{folder}", str(tmp_path))]


def test_links_that_go_round_in_a_circle_are_a_fault_and_no_bug(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").symlink_to(tmp_path / "b.yaml")
    assert faults(tmp_path, a="extends: b.yaml\n") == [
        "a.yaml:1:1: extends: b.yaml cannot be read: Too many levels of symbolic links"
    ]
    (tmp_path / "c.yaml").symlink_to(tmp_path / "a.yaml")
    assert faults(tmp_path, a="extends: c.yaml\n") == ["a.yaml:1:1: extends: goes round in a circle: a.yaml -> c.yaml"]


def test_a_base_in_another_folder_keeps_its_paths_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    shared = tmp_path / "shared"
    (shared / "here").mkdir(parents=True)
    (shared / "base.yaml").write_text(
        BASE.replace("  train: t.jsonl", "  train: [t.jsonl, ../u.jsonl, /abs.jsonl, ~/v.jsonl]\n  eval: e.jsonl")
    )
    made = load(write(tmp_path, r="extends: shared/base.yaml\n"))
    assert [made.path(source.path) for source in made.data.train] == [
        shared / "t.jsonl", shared / ".." / "u.jsonl", Path("/abs.jsonl"), Path("/home/me/v.jsonl"),
    ]  # fmt: skip
    assert made.data.eval is not None
    assert made.path(str(made.data.eval.path)) == shared / "e.jsonl"
    assert made.output == "out"  # lands where peftctl is run, whoever says it
    made = load(write(tmp_path, r="extends: shared/base.yaml\ndata: {train: own.jsonl}\n"))
    assert made.path(made.data.train[0].path) == tmp_path / "own.jsonl"
    assert made.origins["data.eval.path"] == "base.yaml"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/model", "org/model"),  # on the hub: no such folder is there
        ("here", "{shared}/here"),
        ("./absent", "{shared}/absent"),
        ("x" * 300, "x" * 300),
        ("~no-such-user/m", "~no-such-user/m"),
    ],
)
def test_a_base_s_model_is_a_folder_beside_it_or_on_the_hub(tmp_path: Path, name: str, found: str) -> None:
    shared = tmp_path / "shared"
    (shared / "here").mkdir(parents=True)
    (shared / "base.yaml").write_text(BASE.replace("model: m", f"model: {name}"))
    made = load(write(tmp_path, r="extends: shared/base.yaml\n"))
    assert made.model.name == found.replace("{shared}", str(shared))


def test_a_chain_through_folders_looks_up_each_path_beside_the_file_that_says_it(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "a.yaml").write_text("extends: ../b/b.yaml\ndata: {eval: e.jsonl}\n")
    (tmp_path / "b" / "b.yaml").write_text(BASE)
    made = load(write(tmp_path, r="extends: a/a.yaml\n"))
    assert made.path(made.data.train[0].path).resolve() == tmp_path / "b" / "t.jsonl"
    assert made.data.eval is not None
    assert made.path(str(made.data.eval.path)).resolve() == tmp_path / "a" / "e.jsonl"


# --set


def test_each_part_wins_over_the_one_before(tmp_path: Path) -> None:
    """Default < base < recipe < --set < a later --set."""
    path = write(
        tmp_path,
        r="extends: base.yaml\ntrain: {seed: 2, batch_size: 2, log_every: 2}\n",
        base=BASE + "train: {weight_decay: 1, seed: 1, batch_size: 1, log_every: 1}\n",
    )
    made = load(path, overrides=["train.batch_size=3", "train.log_every=3", "train.log_every=4"])
    train = made.train
    assert (train.max_grad_norm, train.weight_decay, train.seed, train.batch_size, train.log_every) == (1, 1, 2, 3, 4)
    keys = ("max_grad_norm", "weight_decay", "seed", "batch_size", "log_every")
    assert [made.origins.get(f"train.{key}") for key in keys] == [None, "base.yaml", "r.yaml", "--set", "--set"]


def given(folder: Path, *overrides: str, text: str = BASE) -> Recipe:
    return load(write(folder, r=text), overrides=overrides)


def test_a_nested_key_is_set_and_its_section_made_where_there_is_none(tmp_path: Path) -> None:
    assert given(tmp_path, "train.epochs=1e0").train.epochs == 1.0
    assert given(tmp_path, "train.seed=3", text=BASE + "train: {epochs: 2}\n").train.model_dump(
        include={"seed", "epochs"}
    ) == {"seed": 3, "epochs": 2}
    made = given(tmp_path, "data.eval.split=0.5")
    assert made.data.eval is not None
    assert made.data.eval.split == 0.5


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("'3'", "3"), ('"a\\tb"', "a\tb"), ("a=b", "a=b"), (" x ", "x"), ("'no'", "no"), ("'a: b'", "a: b"),
        ("2026-01-01", "2026-01-01"), ("/a/b.gguf", "/a/b.gguf"), ("a.b[0]", "a.b[0]"), ("a #b", "a"), ("é", "é"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_yaml(tmp_path: Path, value: str, name: str) -> None:
    assert given(tmp_path, f"model.name={value}").model.name == name


def test_an_item_of_a_list_is_set_alone(tmp_path: Path) -> None:
    text = BASE.replace("t.jsonl", "[{path: a, limit: 3}, b]")
    made = given(tmp_path, "data.train[0].limit=5", "data.train[1].format=messages", text=text)
    assert [(s.path, s.limit, s.format) for s in made.data.train] == [("a", 5, "auto"), ("b", None, "messages")]
    made = given(tmp_path, "data.train[1]=c", text=text)
    assert [(s.path, s.limit) for s in made.data.train] == [("a", 3), ("c", None)]
    made = given(tmp_path, "data.train[0]={limit: 4}", text=text)
    assert [(s.path, s.limit) for s in made.data.train] == [("a", 4), ("b", None)]
    assert given(tmp_path, "data.train[0].limit=5").data.train[0].limit == 5  # a single source is the first
    choices = "eval: {choices: [a, b]}\n"
    text = BASE.replace("  train: t", "  eval: e\n  train: t") + choices
    assert given(tmp_path, "eval.choices[1]='eval.choices[x'", text=text).eval.choices == ("a", "eval.choices[x")


def test_a_list_is_set_whole_and_a_mapping_joined(tmp_path: Path) -> None:
    made = given(tmp_path, "data.train=[a, {path: b, limit: 2}]", "train={epochs: 2}", text=BASE + "train: {seed: 3}\n")
    assert [(s.path, s.limit) for s in made.data.train] == [("a", None), ("b", 2)]
    assert (made.train.epochs, made.train.seed) == (2, 3)


def test_a_word_for_a_section_is_its_name_as_in_a_recipe(tmp_path: Path) -> None:
    made = given(
        tmp_path, "model=n", "method=lora", "data.train=x",
        text=BASE.replace("model: m", "model: {name: m, dtype: float32}").replace("lora", "{name: lora, rank: 3}"),
    )  # fmt: skip
    assert (made.model.name, made.model.dtype) == ("n", "float32")
    assert made.method.model_dump(include={"rank"}) == {"rank": 3}
    assert [source.path for source in made.data.train] == ["x"]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("train.epochs", FORM),
        ("", FORM),
        ("=3", FORM),
        ("train..epochs=3", FORM),
        (".train=3", FORM),
        ("train.=3", FORM),
        ("[0]=3", FORM),
        ("data.train[x]=3", FORM),
        ("data.train[-1]=3", FORM),
        ("data.train[0=3", FORM),
        ("data.train[01]=3", FORM),
        ("data.train[" + "9" * 5000 + "]=3", FORM),
        ("train.epoch=3", f"train.epoch: no such setting; allowed: {TRAIN}; did you mean epochs?"),
        ("zzz=3", "zzz: no such setting; allowed: model, task, data, method, train, eval, track, output, extends"),
        ("data.train[0].limt=3", "data.train[0].limt: no such setting; allowed: path, format, columns, "
                                 "filter, limit, config, hub_split, revision, sha256, weight; did you mean limit?"),
        ("train.batch_size=many", "train.batch_size: must be a whole number (found 'many')"),
        ("train.batch_size=2.0", "train.batch_size: must be a whole number (found 2.0)"),
        ("train.batch_size='8'", "train.batch_size: must be a whole number (found '8')"),
        ("train.batch_size=", "train.batch_size: must be a whole number (found nothing)"),
        ("train.batch_size=0", "train.batch_size: out of range (found 0); allowed: at least 1"),
        ("train.schedule=cosin", "train.schedule: no such value (found 'cosin'); allowed: constant, linear, cosine; "
                                 "did you mean cosine?"),
        ("train=3", "train: must be a mapping (found 3)"),
        ("model=no", "model.name: must be text: YAML reads no as false; put it in quotes (found no)"),
        ("data.train[1].limit=3", "data.train[1]: there is no item 1 (the list has 1)"),
        ("train.epochs[0]=3", "train.epochs[0]: there is no item 0 (there is no list)"),
        ("zzz[2].a=3", "zzz[2]: there is no item 2 (there is no list)"),
        ("extends=base.yaml", "extends: can be said in a recipe only"),
        ("train={a: 1", "not YAML: while parsing a flow mapping expected ',' or '}', but got '<stream end>'"),
        ("train={seed: 1, seed: 1}", "train.seed: the key is repeated (see also --set train={seed: 1, seed: 1})"),
        ("train.seed=!x 1", "train.seed: this YAML tag means nothing here (found !x)"),
        ("train.seed=\x01", "holds the character '\\x01', which YAML does not allow"),
        ("train.seed=*a", "not YAML: found undefined alias 'a'"),
        ("train=" + "[" * 50, "nested deeper than 32 levels"),
        ("train.seed=${env:PEFTCTL_NO_SUCH}", "train.seed: the environment variable PEFTCTL_NO_SUCH is not set"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_said_exactly_so_and_has_no_line(tmp_path: Path, override: str, fault: str) -> None:
    with pytest.raises(RecipeError) as refused:
        given(tmp_path, override)
    [found] = refused.value.faults
    assert str(found) == f"--set {override}: {fault}"
    assert (found.place.file, found.place.line, found.place.column) == (f"--set {override}", 0, 0)


def test_every_wrong_override_is_reported_at_once(tmp_path: Path) -> None:
    assert faults(tmp_path, ["a", "b", "train.seed=1"], r=BASE) == [f"--set a: {FORM}", f"--set b: {FORM}"]
    assert [fault.split(": ")[1] for fault in faults(tmp_path, ["train.b=1", "train.a=1"], r=BASE)] == [
        "train.a",
        "train.b",
    ]


def test_what_an_override_only_adds_to_keeps_its_place(tmp_path: Path) -> None:
    text = BASE.replace("  train: t.jsonl", "  max_length: 9") + "train:\n  epochs: 2\n  zzz: 3\n"
    assert [
        fault.split(": ")[:2] for fault in faults(tmp_path, ["data.max_length=8", "train.max_steps=3"], r=text)
    ] == [
        ["r.yaml:2:1", "data.train"],
        ["r.yaml:7:3", "train.epochs"],
        ["r.yaml:8:3", "train.zzz"],
    ]


def test_an_override_mends_what_the_recipe_has_wrong(tmp_path: Path) -> None:
    text = BASE.replace("model: m", "model: 3") + "train: oops\n"
    made = given(tmp_path, "model.name=m", "train.seed=3", text=text)
    assert (made.model.name, made.train.seed) == ("m", 3)


def test_an_override_s_fault_is_shown_without_what_it_keeps_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell fills in $MY_TOKEN before peftctl sees it; and a value may hold a colon."""
    monkeypatch.setenv("MY_TOKEN", SECRET)
    with pytest.raises(RecipeError) as refused:
        given(tmp_path, f"train={{a: {SECRET}}}")
    console.show_error(refused.value)
    assert capsys.readouterr().err.startswith("--set train={a: <MY_TOKEN>}: error: train.a: no such setting; ")


# ${env:NAME}


@pytest.mark.parametrize("written", ["${env:PEFTCTL_X}", "'${env:PEFTCTL_X}'", "a${env:PEFTCTL_X}b"])
def test_a_variable_that_is_not_set_is_a_fault_at_its_value(tmp_path: Path, written: str) -> None:
    assert faults(tmp_path, r=BASE + f"train:\n  seed: {written}\n") == [
        "r.yaml:7:9: train.seed: the environment variable PEFTCTL_X is not set"
    ]


def test_every_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    assert faults(tmp_path, r=BASE.replace("model: m", "model: ${env:PEFTCTL_X}/${env:PEFTCTL_Y}")) == [
        "r.yaml:1:8: model: the environment variable PEFTCTL_X is not set",
        "r.yaml:1:8: model: the environment variable PEFTCTL_Y is not set",
    ]


@pytest.mark.parametrize(
    "written", ["${PEFTCTL_X}", "${env:}", "${env:1X}", "${ env:X}", "${env:X", "a${b}c", "${env:X-3}"]
)
def test_a_reference_of_no_known_kind_is_a_fault(tmp_path: Path, written: str) -> None:
    assert faults(tmp_path, r=BASE.replace("model: m", f"model: '{written}'")) == [
        f"r.yaml:1:8: model: no such reference (found {written}); "
        "allowed: ${env:NAME}, the value of an environment variable"
    ]


def test_a_lone_dollar_means_nothing(tmp_path: Path) -> None:
    assert given(tmp_path, text=BASE.replace("model: m", "model: a$b{c}")).model.name == "a$b{c}"


def test_a_variable_stands_inside_text_and_more_than_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTCTL_X", "3")
    text = BASE.replace("model: m", "model: ${env:PEFTCTL_X}/a${env:PEFTCTL_X}")
    assert given(tmp_path, text=text).model.name == "3/a3"


@pytest.mark.parametrize(
    ("value", "read"),
    [("3", 3), ("1e-5", 1e-5), ("true", True), ("null", None), ("a: b", "a: b"), ("[1]", "[1]"), ("", None)],
)
def test_a_whole_plain_variable_is_of_the_type_it_looks_like_and_a_quoted_one_is_text(value: str, read: object) -> None:
    environment = {"X": value}
    document = nodes.parse("a: ${env:X}\nb: '${env:X}'\nc: \"${env:X}\"\nd: |-\n  ${env:X}\n", "r.yaml", environment)
    assert document.values == {"a": read, "b": value, "c": value, "d": value}
    assert type(document.values["a"]) is type(read)
    assert document.env_names == {"X"}
    assert document.written["a",] == "${env:X}"


def test_a_reference_needs_no_quotes_between_braces_and_moves_no_column() -> None:
    text = "{a: ${env:X}, b: [${env:X}/y, '${env:X}'], c: ${env:Y}}\n"
    document = nodes.parse(text, "r.yaml", {"X": "3", "Y": "{d: 1}"})
    assert document.values == {"a": 3, "b": ["3/y", "3"], "c": "{d: 1}"}
    assert document.places["c",].column == text.index("c:") + 1
    assert document.written["a",] == "${env:X}"


def test_a_variable_is_no_key_and_is_not_looked_for_in_another_s_value() -> None:
    document = nodes.parse("'${env:X}': '${env:X}'\n", "r.yaml", {"X": "${env:Y}", "Y": "no"})
    assert document.values == {"${env:X}": "${env:Y}"}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("9" * 5000, "cannot be read as a whole number (found ${env:X})"),
        ("0x_", "cannot be read as a whole number (found ${env:X})"),
        ("1" + ":1" * 400 + ".0", "cannot be read as a number (found ${env:X})"),
        ("a\udcffb", "holds the character '\\udcff', which no setting can"),
    ],
)
def test_a_variable_that_cannot_be_read_is_a_fault_and_no_bug(value: str, problem: str) -> None:
    with pytest.raises(RecipeError) as refused:
        nodes.parse("a: ${env:X}\n", "r.yaml", {"X": value})
    assert str(refused.value) == f"r.yaml:1:4: a: {problem}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            BASE + "train: {seed: '${env:MY_TOKEN}'}\n",
            "r.yaml:6:9: train.seed: must be a whole number (found ${env:MY_TOKEN})",
        ),
        (
            BASE + "task: ${env:MY_TOKEN}\n",
            "r.yaml:6:1: task.name: no such task (found ${env:MY_TOKEN}); allowed: causal_lm, seq2seq_lm, seq_cls, "
            "token_cls, question_answering, feature_extraction",
        ),
        (
            BASE.replace("  train: t", "  eval: e\n  train: t") + "eval: {choices: [a, '${env:MY_TOKEN}', a]}\n",
            "r.yaml:7:8: eval.choices: a choice is repeated (found ['a', '${env:MY_TOKEN}', 'a'])",
        ),
        (
            BASE + "train: {optimizer: 'a${env:MY_TOKEN}'}\n",
            "r.yaml:6:9: train.optimizer: no such value (found a${env:MY_TOKEN}); "
            "allowed: adamw, sgd, adafactor, adamw_8bit, paged_adamw, paged_adamw_8bit",
        ),
        (
            BASE.replace("output: out", "output: ['${env:MY_TOKEN}']"),
            "r.yaml:5:1: output: must be text (found a list of 1); allowed: the run directory",
        ),
    ],
)
def test_a_secret_is_shown_in_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    assert faults(tmp_path, r=text) == [fault]


def test_a_secret_is_written_back_as_the_reference_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("MY_PLACE", "plain")
    made = given(tmp_path, text="model: x/${env:MY_TOKEN}\ndata: {train: ['${env:MY_TOKEN}', '${env:MY_PLACE}']}\n"
                 "method: lora\noutput: ${env:MY_TOKEN}\n")  # fmt: skip
    assert made.model.name == f"x/{SECRET}"
    for written in (dump(made), dump_resolved(made, "")):
        assert SECRET not in written
        assert '  name: "x/${env:MY_TOKEN}"' in written
        assert "  - path: plain" in written
        assert 'output: "${env:MY_TOKEN}"' in written
        assert load(write(tmp_path, again=written)) == made
    assert "secrets=" not in repr(made)


@pytest.mark.parametrize(
    "values",
    [
        {"A_KEY": "", "B_KEY": "x"},  # nothing stands between any two letters
        {"A_KEY": "123456", "B_KEY": "true"},  # text that looks like something else
        {"A_KEY": "abc", "B_KEY": "abcdef"},  # one begins with the other
        {"A_KEY": "env", "B_KEY": "KEY"},  # part of a reference
        {"A_KEY": "a", "B_KEY": "$"},
        {"A_KEY": "(.*", "B_KEY": "\\1"},
        {"PLAIN": "${HOME}", "B_KEY": "x"},  # would be read as a reference itself
    ],
)
def test_whatever_a_secret_is_the_recipe_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    a, b = values
    made = given(tmp_path, text=f"model: 'm${{env:{a}}}'\ndata: {{train: 'x${{env:{a}}}y${{env:{b}}}'}}\nmethod: lora\n"
                 f"output: '${{env:{b}}}'\n")  # fmt: skip
    assert load(write(tmp_path, again=dump(made))) == made
    assert load(write(tmp_path, again=dump_resolved(made, ""))) == made


# check


def model_of(folder: Path, config: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    return folder


def test_a_model_of_a_kind_that_transformers_has_no_class_for_is_a_fault(tmp_path: Path) -> None:
    model_of(tmp_path / "m", '{"model_type": "lama"}')
    with pytest.raises(RecipeError) as refused:
        check(write(tmp_path, r=BASE))
    [fault] = refused.value.faults
    assert (fault.place.line, fault.place.column, fault.key, fault.found) == (1, 1, "model.name", "lama")
    assert fault.problem.startswith("transformers ")
    assert fault.problem.endswith(" has no causal_lm model of this type")
    assert fault.nearest == "llama"


@pytest.mark.parametrize(
    "config",
    ['{"model_type": "llama"}', '{"model_type": "mine", "auto_map": {}}', '{"model_type": 3}', "{}", "[]", "", "\\"],
)
def test_what_cannot_be_judged_without_the_model_is_left_to_the_run(tmp_path: Path, config: str) -> None:
    model_of(tmp_path / "m", config)
    path = write(tmp_path, r=BASE)
    assert check(path, ["train.seed=3"]) == load(path, overrides=["train.seed=3"])


def test_a_home_that_nobody_has_is_a_fault_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        check(write(tmp_path, r=BASE.replace("model: m", "model: ~nobody-here/m")))
    assert str(refused.value).endswith("r.yaml:1:1: model.name: ~nobody-here/m: there is no such user's home")


def test_a_method_that_does_not_work_on_the_task_is_a_fault_at_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"causal_lm": "no gradient", "other": "yes"}
    monkeypatch.setattr(able, "table", lambda _: {"methods": {"lora": {"tasks": tasks}}})
    with pytest.raises(RecipeError) as refused:
        check(write(tmp_path, r=BASE + "task: causal_lm\n"))
    assert str(refused.value).replace(f"{tmp_path}/", "") == (
        "r.yaml:4:1: method.name: lora does not work on causal_lm: no gradient (see also r.yaml:6:1); "
        "allowed: task other"
    )
