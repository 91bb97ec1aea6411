"""A recipe's faults, all at once, each at its place; and what it means where it has none."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftctl.errors import RecipeError
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe, load
from peftctl.recipe.load import MAX_BYTES
from peftctl.recipe.schema import SECTIONS, TrainSettings

# Five lines; what a test adds begins at line 6.
BASE = "model: m\ndata:\n  train: t.jsonl\nmethod: lora\noutput: out\n"
TOP = ", ".join([*SECTIONS, "output", "extends"])
NEEDS = "is missing (a recipe needs model, data, method, output)"
TRAIN = ", ".join(TrainSettings.model_fields)
TOO_MUCH = "anchors and aliases make it larger than 50,000 values or deeper than 32 levels"
LORA = ", ".join(LoraSettings.model_fields)


def read(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path)


def faults(folder: Path, text: str | bytes) -> list[str]:
    """The faults of a recipe as they are shown, with the file's name for its path."""
    with pytest.raises(RecipeError) as refused:
        read(folder, text)
    assert refused.value.faults == sorted(refused.value.faults, key=lambda fault: (fault.place, fault.key))
    return str(refused.value).replace(f"{folder}/", "").split("\n")


def data(train: str = "t.jsonl", rest: str = "") -> str:
    return f"model: m\ndata:\n  train: {train}\n{rest}method: lora\noutput: out\n"


def test_the_shortest_recipe(tmp_path: Path) -> None:
    recipe = read(tmp_path, BASE)
    assert recipe.model.name == "m"
    assert recipe.model.dtype == "auto"
    assert [source.path for source in recipe.data.train] == ["t.jsonl"]
    assert recipe.data.eval is None
    assert recipe.method.name == "lora"
    assert recipe.task.name == "causal_lm"
    assert recipe.output == "out"
    assert recipe.folder == tmp_path
    assert recipe.train.epochs is None
    assert recipe.train.seed == 0


def test_everything_spelled_out_is_the_same_recipe(tmp_path: Path) -> None:
    longer = (
        "output: out\ntask: {name: causal_lm}\nmethod:\n  name: lora\ndata:\n  train:\n    - path: t.jsonl\n"
        "      format: auto\n  eval: null\nmodel:\n  name: m\ntrain: {}\n"
    )
    assert read(tmp_path, longer) == read(tmp_path, BASE)


def test_every_fault_is_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "modle: m\n"
        "data:\n"
        "  train:\n"
        "    - pth: a.jsonl\n"
        "      limit: 0\n"
        "  max_length: 4\n"
        "method:\n"
        "  name: lora\n"
        "  rank: eight\n"
        "train:\n"
        "  epochs: 1\n"
        "  max_steps: 2\n"
        "  optimizer: adam\n"
    )
    assert faults(tmp_path, text) == [
        f"r.yaml:1:1: model: {NEEDS}",
        f"r.yaml:1:1: modle: no such setting; allowed: {TOP}; did you mean model?",
        f"r.yaml:1:1: output: {NEEDS}",
        "r.yaml:4:7: data.train[0].path: is missing",
        "r.yaml:4:7: data.train[0].pth: no such setting; allowed: path, format, columns, filter, limit, config, "
        "hub_split, revision, sha256, weight; did you mean path?",
        "r.yaml:5:7: data.train[0].limit: out of range (found 0); allowed: at least 1",
        "r.yaml:6:3: data.max_length: out of range (found 4); allowed: at least 8",
        "r.yaml:9:3: method.rank: must be a whole number (found 'eight')",
        "r.yaml:11:3: train.epochs: and train.max_steps both say how long to train (see also r.yaml:12:3)",
        "r.yaml:13:3: train.optimizer: no such value (found 'adam'); "
        "allowed: adamw, sgd, adafactor, adamw_8bit, paged_adamw, paged_adamw_8bit; did you mean adamw?",
    ]


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "1E-5", "+1e-5", "0.00001", "1.e-5", "1_0e-6", "1e-05"])
def test_a_number_is_a_number_however_it_is_written(tmp_path: Path, written: str) -> None:
    assert read(tmp_path, BASE + f"train: {{learning_rate: {written}}}\n").train.learning_rate == 1e-5


@pytest.mark.parametrize("written", ["'1e-5'", "1e", "e5", "1e-5x", "one", "1-5"])
def test_what_is_no_number_is_refused_where_one_is_wanted(tmp_path: Path, written: str) -> None:
    [fault] = faults(tmp_path, BASE + f"train:\n  learning_rate: {written}\n")
    text = written.strip("'")
    assert fault == f"r.yaml:7:3: train.learning_rate: must be a number (found '{text}')"


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "max_grad_norm", "epochs"])
@pytest.mark.parametrize("written", [".inf", ".nan", "1e400"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, name: str, written: str) -> None:
    [fault] = faults(tmp_path, BASE + f"train:\n  {name}: {written}\n")
    assert fault.startswith(f"r.yaml:7:3: train.{name}: ")


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("no", ": YAML reads no as false"), ("Yes", ": YAML reads Yes as true"), ("on", ": YAML reads on as true"),
        ("3", ""), ("1e-5", ""), ("true", ""), ("FALSE", ""),
    ],
)  # fmt: skip
def test_a_bare_word_that_yaml_takes_for_something_else_is_to_be_quoted(tmp_path: Path, word: str, why: str) -> None:
    assert faults(tmp_path, BASE.replace("model: m", f"model: {word}")) == [
        f"r.yaml:1:1: model.name: must be text{why}{';' if why else ':'} put it in quotes (found {word})"
    ]
    assert read(tmp_path, BASE.replace("model: m", f"model: '{word}'")).model.name == word


@pytest.mark.parametrize("written", ["2026-01-01", "2026-01-01 10:00:00"])
def test_a_date_is_the_text_it_is_written_as(tmp_path: Path, written: str) -> None:
    assert read(tmp_path, BASE.replace("output: out", f"output: {written}")).output == written


def test_choices_that_yaml_reads_as_booleans_are_each_named(tmp_path: Path) -> None:
    text = data(rest="  eval: e.jsonl\n") + "eval:\n  choices: [yes, no]\n"
    assert faults(tmp_path, text) == [
        "r.yaml:8:13: eval.choices[0]: must be text: YAML reads yes as true; put it in quotes (found yes)",
        "r.yaml:8:18: eval.choices[1]: must be text: YAML reads no as false; put it in quotes (found no)",
    ]


def test_a_wrong_item_of_a_list_is_the_only_fault(tmp_path: Path) -> None:
    assert faults(tmp_path, data("3")) == ["r.yaml:3:3: data.train[0].path: must be text: put it in quotes (found 3)"]
    assert faults(tmp_path, data("[{path: a, format: 3}]")) == [
        "r.yaml:3:21: data.train[0].format: must be text: put it in quotes (found 3)"
    ]
    assert faults(tmp_path, data("[a, null]")) == ["r.yaml:3:14: data.train[1]: must be a mapping (found null)"]


def test_a_list_too_short_is_said_to_be(tmp_path: Path) -> None:
    assert faults(tmp_path, data("[]")) == [
        "r.yaml:3:3: data.train: too short (found a list of 0); allowed: at least 1 in the list"
    ]
    text = data(rest="  eval: e.jsonl\n") + "eval: {choices: [a]}\n"
    assert faults(tmp_path, text) == [
        "r.yaml:7:8: eval.choices: too short (found a list of 1); allowed: at least 2 in the list"
    ]


@pytest.mark.parametrize(
    ("targets", "place"),
    [("3", "4:23: method.targets: "), ("[3]", "4:33: method.targets[0]: "), ("{a: b}", "4:23: method.targets: ")],
)
def test_wrong_targets_are_one_fault(tmp_path: Path, targets: str, place: str) -> None:
    text = BASE.replace("method: lora", f"method: {{name: lora,  targets: {targets}}}")
    [fault] = faults(tmp_path, text)
    assert fault.startswith(f"r.yaml:{place}must be ")


def test_no_targets_at_all_is_one_fault(tmp_path: Path) -> None:
    [fault] = faults(tmp_path, BASE.replace("method: lora", "method: {name: lora, targets: ''}"))
    assert fault == "r.yaml:4:22: method.targets[0]: too short (found ''); allowed: at least 1 letter"
    [fault] = faults(tmp_path, BASE.replace("method: lora", "method: {name: lora, targets: []}"))
    assert fault == "r.yaml:4:22: method.targets: too short (found a list of 0); allowed: at least 1 in the list"


def test_a_repeated_key_is_a_fault_with_both_places(tmp_path: Path) -> None:
    text = BASE + "train:\n  seed: 1\n  epochs: 2\n  seed: 1\noutput: other\n"
    assert faults(tmp_path, text) == [
        "r.yaml:9:3: train.seed: the key is repeated (see also r.yaml:7:3)",
        "r.yaml:10:1: output: the key is repeated (see also r.yaml:5:1)",
    ]


def test_a_key_repeated_in_a_list_s_items_is_no_fault(tmp_path: Path) -> None:
    recipe = read(tmp_path, data("[{path: a}, {path: b}]"))
    assert [source.path for source in recipe.data.train] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("trian: {}", f"r.yaml:6:1: trian: no such setting; allowed: {TOP}; did you mean train?"),
        ("zzz: {}", f"r.yaml:6:1: zzz: no such setting; allowed: {TOP}"),
        ("train: {epoch: 1}", f"r.yaml:6:9: train.epoch: no such setting; allowed: {TRAIN}; did you mean epochs?"),
        ("eval: {chioces: 1}", "r.yaml:6:8: eval.chioces: no such setting; allowed: every, best, choices, generate; "
                               "did you mean choices?"),
        ("task: {nam: x}", "r.yaml:6:8: task.nam: no such setting; allowed: name, labels, problem, pooling, "
         "temperature, no_answer, stride, max_answer_tokens; did you mean name?"),
        ("task: causal_ml", "r.yaml:6:1: task.name: no such task (found 'causal_ml'); allowed: causal_lm, seq2seq_lm, "
         "seq_cls, token_cls, question_answering, feature_extraction; "
                            "did you mean causal_lm?"),
        ("train: 3", "r.yaml:6:1: train: must be a mapping (found 3)"),
        ("train: [a]", "r.yaml:6:1: train: must be a mapping (found a list of 1)"),
        ("train: {batch_size: 2.5}", "r.yaml:6:9: train.batch_size: must be a whole number (found 2.5)"),
        ("train: {batch_size: 2.0}", "r.yaml:6:9: train.batch_size: must be a whole number (found 2.0)"),
        ("train: {batch_size: true}", "r.yaml:6:9: train.batch_size: must be a whole number (found true)"),
        ("train: {batch_size: '8'}", "r.yaml:6:9: train.batch_size: must be a whole number (found '8')"),
        ("train: {batch_size: null}", "r.yaml:6:9: train.batch_size: must be a whole number (found null)"),
        ("train: {gradient_checkpointing: 1}", "r.yaml:6:9: train.gradient_checkpointing: must be true or false "
                                               "(found 1)"),
        ("train: {warmup_ratio: 1}", "r.yaml:6:9: train.warmup_ratio: out of range (found 1); allowed: less than 1"),
        ("train: {warmup_ratio: -0.1}", "r.yaml:6:9: train.warmup_ratio: out of range (found -0.1); "
                                        "allowed: at least 0"),
        ("train: {epochs: 0}", "r.yaml:6:9: train.epochs: out of range (found 0); allowed: more than 0"),
        ("train: {seed: 4294967296}", "r.yaml:6:9: train.seed: out of range (found 4294967296); "
                                      "allowed: less than 4294967296"),
        ("train: {schedule: cosin}", "r.yaml:6:9: train.schedule: no such value (found 'cosin'); "
                                     "allowed: constant, linear, cosine; did you mean cosine?"),
        ("eval: {every: 3}", "r.yaml:6:8: eval.every: has no effect without held-out rows: set data.eval"),
    ],
)  # fmt: skip
def test_one_fault_is_said_exactly_so(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, BASE + text + "\n") == [fault]


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("lara", "r.yaml:4:1: method.name: no such method (found 'lara'); allowed: lora; did you mean lora?"),
        ("{name: lara}", "r.yaml:4:10: method.name: no such method (found 'lara'); allowed: lora; did you mean lora?"),
        ("{rank: 4}", "r.yaml:4:1: method.name: is missing; allowed: lora"),
        ("3", "r.yaml:4:1: method.name: must be a method's name (found 3); allowed: lora"),
        ("", "r.yaml:4:1: method: must be a method's name (found nothing); allowed: lora"),
        ("{name: lora, rnk: 8}", "r.yaml:4:22: method.rnk: no such setting; "
                                 f"allowed: {LORA}; did you mean rank?"),
        ("{name: lora, rank: 0}", "r.yaml:4:22: method.rank: out of range (found 0); allowed: at least 1"),
    ],
)  # fmt: skip
def test_a_method_s_fault_is_said_exactly_so(tmp_path: Path, method: str, fault: str) -> None:
    from peftctl.recipe.load import ALLOWED

    fault = fault.replace("allowed: lora", f"allowed: {ALLOWED}")
    assert faults(tmp_path, BASE.replace("method: lora", f"method: {method}")) == [fault]


@pytest.mark.parametrize(
    ("held_out", "fault"),
    [
        ("{}", "r.yaml:4:3: data.eval: says nothing of where held-out rows come from; "
               "allowed: one of path, split, count"),
        ("{split: 0.1, count: 3}", "r.yaml:4:10: data.eval.split: and data.eval.count both say which rows are held "
                                   "out (see also r.yaml:4:22)"),
        ("{path: e, count: 3}", "r.yaml:4:10: data.eval.path: and data.eval.count both say which rows are held out "
                                "(see also r.yaml:4:19)"),
        ("{count: 3, limit: 2}", "r.yaml:4:20: data.eval.limit: has no effect on rows taken from "
                                 "the training rows (see also r.yaml:4:10)"),
        ("{split: 1.0}", "r.yaml:4:10: data.eval.split: out of range (found 1.0); allowed: less than 1"),
        ("{pth: e}", None),
        ("true", "r.yaml:4:3: data.eval.path: must be text: put it in quotes (found true)"),
        ("{path: e, format: message}", "r.yaml:4:19: data.eval.format: no such format (found 'message'); "
                                       "allowed: auto, messages, instruction, prompt_completion, text; "
                                       "did you mean messages?"),
    ],
)  # fmt: skip
def test_a_fault_of_the_held_out_rows_is_said_exactly_so(tmp_path: Path, held_out: str, fault: str | None) -> None:
    found = faults(tmp_path, data(rest=f"  eval: {held_out}\n"))
    if fault is None:
        assert found == [
            "r.yaml:4:3: data.eval: says nothing of where held-out rows come from; allowed: one of path, split, count",
            "r.yaml:4:10: data.eval.pth: no such setting; allowed: path, format, columns, filter, limit, config, "
            "hub_split, revision, sha256, split, count; "
            "did you mean path?",
        ]
    else:
        assert found == [fault]


@pytest.mark.parametrize("held_out", ["e.jsonl", "{split: 0.25}", "{count: 3}", "{path: e, format: messages}", "null"])
def test_each_way_to_hold_rows_out_is_taken(tmp_path: Path, held_out: str) -> None:
    read(tmp_path, data(rest=f"  eval: {held_out}\n"))


def test_a_repeated_choice_is_a_fault(tmp_path: Path) -> None:
    text = data(rest="  eval: e.jsonl\n") + "eval: {choices: [a, b, a]}\n"
    assert faults(tmp_path, text) == ["r.yaml:7:8: eval.choices: a choice is repeated (found ['a', 'b', 'a'])"]


def test_every_source_s_format_is_checked(tmp_path: Path) -> None:
    found = faults(tmp_path, data("[{path: a, format: mesages}, {path: b, format: zzz}]"))
    assert [fault.split(" (found")[0] for fault in found] == [
        "r.yaml:3:21: data.train[0].format: no such format",
        "r.yaml:3:49: data.train[1].format: no such format",
    ]
    assert found[0].endswith("; did you mean messages?")


def test_a_single_source_is_the_first_of_a_list(tmp_path: Path) -> None:
    [fault] = faults(tmp_path, data("{path: a, limt: 3}"))
    assert fault.startswith(
        "r.yaml:3:20: data.train[0].limt: no such setting; allowed: path, format, columns, filter, limit"
    )


# Anchors and merge keys


def test_an_anchor_is_the_value_it_names(tmp_path: Path) -> None:
    recipe = read(tmp_path, data("&it t.jsonl", "  eval: *it\n"))
    assert recipe.data.eval is not None
    assert recipe.data.eval.path == "t.jsonl"


def test_what_is_merged_in_is_overruled_by_what_is_written(tmp_path: Path) -> None:
    recipe = read(tmp_path, data("[&a {path: a, format: messages, limit: 3}, {<<: *a, path: b}, {limit: 4, <<: *a}]"))
    assert [(s.path, s.format, s.limit) for s in recipe.data.train] == [
        ("a", "messages", 3),
        ("b", "messages", 3),
        ("a", "messages", 4),
    ]


def test_an_earlier_mapping_of_a_merge_list_wins(tmp_path: Path) -> None:
    text = data("[&a {path: a, limit: 1}, &b {path: b, format: messages}, {<<: [*a, *b]}]")
    last = read(tmp_path, text).data.train[-1]
    assert (last.path, last.limit, last.format) == ("a", 1, "messages")


def test_a_fault_in_what_is_merged_in_is_shown_where_it_is_written(tmp_path: Path) -> None:
    [fault] = faults(tmp_path, BASE.replace("method: lora", "method:\n  name: lora\n  <<: {rnk: 4}"))
    assert fault.startswith("r.yaml:6:8: method.rnk: no such setting")


def test_an_alias_of_a_mapping_that_merges_is_no_repetition(tmp_path: Path) -> None:
    recipe = read(tmp_path, data("[&a {path: a, format: messages}, &b {<<: *a, path: b}, *b]"))
    assert [source.path for source in recipe.data.train] == ["a", "b", "b"]


def test_a_key_repeated_beside_a_merge_is_still_a_fault(tmp_path: Path) -> None:
    [fault] = faults(tmp_path, BASE.replace("method: lora", "method:\n  <<: {rank: 4}\n  name: lora\n  name: lora"))
    assert fault == "r.yaml:7:3: method.name: the key is repeated (see also r.yaml:6:3)"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("train: *b\n", "r.yaml:6:8: not YAML: found undefined alias 'b'"),
        ("train:\n  <<: 3\n", "r.yaml:7:7: not YAML: while constructing a mapping expected a mapping or list of "
                             "mappings for merging, but found scalar"),
    ],
)  # fmt: skip
def test_a_wrong_alias_or_merge_is_shown_where_it_stands(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, BASE + text) == [fault]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("train: &a\n  x: *a\n", "r.yaml:6:8: train.x.x.x"),
        ("train: &a [*a]\n", "r.yaml:6:8: train[0][0][0]"),
        ("train: &a\n  <<: [{x: *a}]\n", "r.yaml:6:8: train.x.x.x"),
    ],
)
def test_a_mapping_that_holds_itself_is_a_fault_and_no_bug(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, BASE + text) == [f"{fault}: {TOO_MUCH}"]


def test_a_mapping_that_merges_itself_gains_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, BASE + "train: &a\n  seed: 3\n  <<: *a\n").train.seed == 3


def test_a_mapping_merged_in_before_it_is_reached_repeats_no_key(tmp_path: Path) -> None:
    found = faults(tmp_path, "train: &a {<<: {seed: 1}, seed: 2, zzz: 3}\n<<: *a\n" + BASE)
    assert [fault.split(" ")[1] for fault in found] == ["seed:", "train.zzz:", "zzz:"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("train: " + "[" * 5000 + "]" * 5000, "6:39"),
        ("train: " + "[" * 33 + "]" * 33, "6:39"),
        ("train: " + "{a: " * 5000 + "}" * 5000, "6:132"),
        ("train:\n  " + "- " * 5000, "7:65"),
        ("train:\n  " + "? " * 5000, "7:65"),
    ],
    ids=["lists", "a level too many", "mappings", "block lists", "block keys"],
)
@pytest.mark.timeout(5)
def test_deep_nesting_is_a_fault_and_no_bug(tmp_path: Path, text: str, place: str) -> None:
    assert faults(tmp_path, BASE + text + "\n") == [f"r.yaml:{place}: nested deeper than 32 levels"]


def multiplied(start: str, item: str, levels: int) -> str:
    """Aliases of aliases, each level ten of the one before: a thousand bytes that would be 10^levels values."""
    lines = [f"a0: &a0 {start}"]
    lines += [f"a{i}: &a{i} {item % ', '.join([f'*a{i - 1}'] * 10)}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def merged(levels: int) -> str:
    """The same by merge keys, nested so that nothing is read before all of it would have been merged."""
    inner = "&a0 {k: 1}"
    for i in range(1, levels):
        inner = f"&a{i} {{<<: [{inner}{f', *a{i - 1}' * 9}]}}"
    return f"train: {inner}\n"


def chained(link: str, count: int, last: str) -> str:
    lines = ["a0: &a0 {seed: 1}", *(f"a{i}: &a{i} {link % (i - 1)}" for i in range(1, count))]
    return "\n".join(lines) + f"\n{last}\n"


@pytest.mark.parametrize(
    "bomb",
    [
        multiplied("[x]", "[%s]", 16),
        multiplied("{k: 1}", "{<<: [%s]}", 16),
        merged(15),
        chained("[*a%d]", 2000, "train: *a1999"),
        chained("{<<: *a%d}", 2000, "<<: *a1999"),
    ],
    ids=["lists", "merges", "merges in merges", "a chain", "a chain of merges"],
)
def test_aliases_of_aliases_are_refused_within_seconds_and_before_they_fill_the_memory(
    tmp_path: Path, bomb: str
) -> None:
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [fault] = faults(tmp_path, BASE + bomb)
    assert fault.endswith(TOO_MUCH)
    assert time.process_time() - begun < 5  # read to their end they take hours
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # kilobytes


def test_a_chain_of_merges_within_reason_is_read(tmp_path: Path) -> None:
    chain = ", ".join(["&a0 {path: a0, limit: 3}", *(f"&a{i} {{<<: *a{i - 1}, path: a{i}}}" for i in range(1, 200))])
    train = read(tmp_path, data(f"[{chain}]")).data.train
    assert (len(train), train[-1].path, train[-1].limit) == (200, "a199", 3)


# The file's form


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "r.yaml:1:1: the recipe is empty"),
        ("# only a comment\n", "r.yaml:1:1: the recipe is empty"),
        ("- model: m\n", "r.yaml:1:1: a recipe is a mapping of keys to settings (found a list)"),
        ("\n\nmodel\n", "r.yaml:3:1: a recipe is a mapping of keys to settings (found a single value)"),
        (BASE + "---\n" + BASE, "r.yaml:6:1: not YAML: a second document begins here, and a recipe is one"),
        (BASE + "train:\n\tseed: 1\n", "r.yaml:7:1: not YAML: a tab stands where YAML takes only spaces"),
        (BASE + "  deeper: 1\n", "r.yaml:6:9: not YAML: a second `key:` on one line, or text with "
                                  "`: ` that needs quotes"),
        (BASE + "3: a\n", "r.yaml:6:1: a key must be text (found 3); allowed: text, in quotes if need be"),
        (BASE + "yes: a\n", "r.yaml:6:1: a key must be text (found yes); allowed: text, in quotes if need be"),
        (BASE + "train: {? [a] : 3}\n", "r.yaml:6:11: train: a key must be text (found a list); "
                                        "allowed: text, in quotes if need be"),
        (BASE + "x: !!python/name:os.system a\n", "r.yaml:6:4: x: this YAML tag means nothing here "
                                                  "(found !!python/name:os.system)"),
        (BASE + "train: {seed: !mine 3}\n", "r.yaml:6:15: train.seed: this YAML tag means nothing here (found !mine)"),
        (BASE + "train: !mine {seed: 3}\n", "r.yaml:6:8: train: this YAML tag means nothing here (found !mine)"),
        (BASE + "train: !!set {seed}\n", "r.yaml:6:8: train: this YAML tag means nothing here (found !!set)"),
    ],
)  # fmt: skip
def test_a_fault_of_form_is_said_exactly_so(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, text) == [fault]


def test_several_faults_of_form_are_reported_at_once(tmp_path: Path) -> None:
    text = BASE + "3: a\ntrain: {seed: !mine 3, seed: 4}\n"
    assert [fault.split(" ")[0] for fault in faults(tmp_path, text)] == [
        "r.yaml:6:1:",
        "r.yaml:7:15:",
        "r.yaml:7:24:",
    ]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("!!int abc", "a whole number (found abc)"),
        ("!!int ''", "a whole number"),
        ("0x_", "a whole number (found 0x_)"),
        ("9" * 5000, f"a whole number (found {'9' * 5000})"),
        ("!!float ''", "a number"),
        ("1" + ":1" * 400 + ".0", f"a number (found 1{':1' * 400}.0)"),
        ("!!bool maybe", "what its tag says (found maybe)"),
    ],
)
def test_a_value_that_cannot_be_read_is_a_fault_at_its_place(tmp_path: Path, value: str, fault: str) -> None:
    assert faults(tmp_path, BASE + f"train:\n  seed: {value}\n") == [
        f"r.yaml:7:9: train.seed: cannot be read as {fault}"
    ]


@pytest.mark.parametrize("character", ["\\0", "\\ud800", "\\udfff"])
def test_a_character_that_no_file_s_name_can_hold_is_a_fault(tmp_path: Path, character: str) -> None:
    shown = f"'{character}'" if character != "\\0" else "'\\x00'"
    assert faults(tmp_path, BASE.replace("model: m", f'model: "a{character}b"')) == [
        f"r.yaml:1:8: model: holds the character {shown}, which no setting can"
    ]
    assert faults(tmp_path, BASE + f'train: {{"a{character}b": 1}}\n') == [
        f"r.yaml:6:9: train: holds the character {shown}, which no setting can"
    ]


@pytest.mark.parametrize("character", ["\x01", "\0", "\x7f", "\x80", "\ufffe"])
def test_a_control_character_is_a_fault_and_no_bug(tmp_path: Path, character: str) -> None:
    assert faults(tmp_path, BASE + f"train: {character}\n") == [
        f"r.yaml:6: holds the character {character!a}, which YAML does not allow"
    ]


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbf" + BASE.encode()) == read(tmp_path, BASE)


def test_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, BASE.replace("\n", "\r\n")) == read(tmp_path, BASE)
    [fault] = faults(tmp_path, (BASE + "train:\n  seed: -1\n").replace("\n", "\r\n"))
    assert fault.startswith("r.yaml:7:3: train.seed: ")


def test_text_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    assert faults(tmp_path, b"model: \xe9t\xe9\n") == ["r.yaml:1: not UTF-8 text (found byte 0xe9)"]
    assert faults(tmp_path, BASE.encode() + b"train: \xff\n") == ["r.yaml:6: not UTF-8 text (found byte 0xff)"]


def test_a_recipe_too_large_is_refused_unread(tmp_path: Path) -> None:
    size = MAX_BYTES + 1
    assert faults(tmp_path, "#" * size) == [f"r.yaml: too large for a recipe (found {size:,} bytes); allowed: 100 kB"]
    read(tmp_path, BASE + "#" * (MAX_BYTES - len(BASE)))


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        load(tmp_path)
    assert str(refused.value) == f"{tmp_path}: is a folder, not a recipe"


def test_an_absent_file_names_the_nearest_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").touch()
    with pytest.raises(RecipeError) as refused:
        load(tmp_path / "lra.yaml")
    assert str(refused.value) == (
        f"{tmp_path}/lra.yaml: cannot be read: No such file or directory; did you mean {tmp_path}/lora.yaml?"
    )
    with pytest.raises(RecipeError) as refused:
        load(tmp_path / "no" / "such" / "r.yaml")
    assert str(refused.value) == f"{tmp_path}/no/such/r.yaml: cannot be read: No such file or directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)
    path.chmod(0)
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        load(path)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("no", ": YAML reads no as false; put it in quotes (found no)"),
        ("7", ": put it in quotes (found 7)"),
        ("", " (found nothing)"),
        ("' '", " (found ' ')"),
        ("[a]", " (found a list of 1)"),
    ],
)
def test_the_output_is_a_folder_s_name(tmp_path: Path, written: str, found: str) -> None:
    assert faults(tmp_path, BASE.replace("output: out", f"output: {written}")) == [
        f"r.yaml:5:1: output: must be text{found}; allowed: the run directory"
    ]


def test_an_output_from_the_command_line_replaces_the_recipe_s(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE.replace("output: out\n", ""))
    assert load(path, "elsewhere").output == "elsewhere"
    path.write_text(BASE)
    assert load(path, "elsewhere").output == "elsewhere"
    with pytest.raises(RecipeError) as refused:
        load(path, " ")
    assert str(refused.value) == "--output: output: must be text (found ' '); allowed: the run directory"


def test_paths_are_looked_up_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe = read(tmp_path, BASE)
    assert recipe.path("t.jsonl") == tmp_path / "t.jsonl"
    assert recipe.path("/abs/t.jsonl") == Path("/abs/t.jsonl")
    assert recipe.path("~/t.jsonl") == Path("/home/me/t.jsonl")


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("no", "no"), ("NULL", "NULL"), ("~", "~"), ("", "nothing"), ("1e-5", "1e-5"), ("2.50", "2.50"),
        ("'no'", "'no'"), ("word", "'word'"), ("{a: 1}", "a mapping"), ("[]", "a list of 0"), ("[1, 2]", "a list of 2"),
        ("x" * 100, "'" + "x" * 56 + "..."), ("x" * 58, "'" + "x" * 58 + "'"),
        ("1." + "0" * 70, "1." + "0" * 55 + "..."),
    ],
)  # fmt: skip
def test_a_value_is_shown_as_it_was_written_and_cut(tmp_path: Path, written: str, found: str) -> None:
    [fault] = faults(tmp_path, BASE + f"train: {{batch_size: {written}}}\n")
    assert fault == f"r.yaml:6:9: train.batch_size: must be a whole number (found {found})"


def test_a_recipe_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BASE + "trian: 3\n")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from peftctl.errors import RecipeError\nfrom peftctl.recipe import load\n"
        "try:\n    load(Path('r.yaml'))\nexcept RecipeError:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "transformers" not in done.stdout
    assert "'peft'" not in done.stdout
