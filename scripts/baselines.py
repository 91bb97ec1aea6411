"""The quickstart's mails answered by everything that is simpler than an adapter, beside the adapter.

    python scripts/baselines.py RUN [--json FILE] [--page FILE]

Rows: the majority's answer; TF-IDF with logistic regression on the training mails; the base as it is, and with three
training mails in its prompt; the adapter. The models are scored by the likelihood of the two answers, as they are
and with a threshold on the difference that is best (by macro F1) on training mails, for base and adapter alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine, versions
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import peftctl
from peftctl.data.sources import Sourced, read
from peftctl.evaluation.choices import classify, majority, questions, report, score
from peftctl.example import Conversation, Turn
from peftctl.quiet import no_progress_bars, quiet_libraries

THRESHOLD_ROWS = 100
SHOTS = 3
LONGEST = 2048  # room for three mails in the prompt

Scores = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, help="also write the table there")
    parser.add_argument("--page", type=Path, help="also write it there as a page with machine and versions")
    options = parser.parse_args()
    quiet_libraries()
    no_progress_bars()
    loaded = peftctl.load(options.run)
    choices = loaded.run.recipe.eval.choices or ()
    learned, measured_on = read(loaded.run.recipe)
    train, held_out = list(learned.examples), list(measured_on.examples if measured_on else ())
    truth = answers(held_out, choices)
    table = {
        "majority": majority(truth, choices),
        "TF-IDF + logistic regression": tf_idf(train, held_out, choices),
    }

    tuning = balanced(train, choices, THRESHOLD_ROWS)
    shots = balanced(train, choices, SHOTS + 1)[:SHOTS]
    shown = {id(row) for row in shots}
    few = [row for row in tuning if id(row) not in shown]
    with loaded.fast.on(loaded.model), loaded.base() as model:
        table |= measured("base", loaded, model, tuning, held_out, choices)
        table |= measured(
            f"base, {SHOTS} examples in the prompt",
            loaded,
            model,
            [with_shots(row, shots) for row in few],
            [with_shots(row, shots) for row in held_out],
            choices,
        )
    with loaded.fast.on(loaded.model):
        table |= measured("adapter", loaded, loaded.model, tuning, held_out, choices)
    width = max(map(len, table))
    for name, figures in table.items():
        print(f"{name:<{width}} accuracy {figures['accuracy']:.3f}  macro F1 {figures['macro_f1']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    if options.page:
        options.page.write_text(page(table, loaded.run.manifest), encoding="utf-8")


def page(table: dict[str, Any], manifest: Any) -> str:
    """The table as Markdown, with what it was measured on."""
    rows = [
        f"| {name} | {figures['accuracy']:.3f} | {figures['macro_f1']:.3f} |"
        + "".join(f" {f1:.3f} |" for f1 in figures["f1"].values())
        for name, figures in table.items()
    ]
    choices = list(next(iter(table.values()))["f1"])
    train, held_out = manifest["data"]["train"], manifest["data"]["eval"]
    return "\n".join(
        [
            "# Spam or ham: the quickstart beside simpler ways",
            "",
            "What `scripts/quickstart --baselines` measured. SmolLM2-135M-Instruct (dequantised from 4 bits), "
            f"{train['kept']} training mails, {manifest['steps']} updates; {held_out['kept']} held-out mails from "
            "other archives, half of them spam. A model's answer is the likelier of the two. A threshold on the "
            f"difference, where one is used, is the best by macro F1 on {THRESHOLD_ROWS} training mails.",
            "",
            "| | accuracy | macro F1 |" + "".join(f" F1 of {choice} |" for choice in choices),
            "|---|---|---|" + "---|" * len(choices),
            *rows,
            "",
            f"Machine: {machine()}. {versions()}.",
            "",
        ]
    )


def measured(
    name: str,
    loaded: Any,
    model: Any,
    tuning: Sequence[Sourced],
    held_out: Sequence[Sourced],
    choices: Sequence[str],
) -> dict[str, Any]:
    """Two rows of the table: the likeliest answer, and the answer by the threshold best on ``tuning``."""
    scores, truths = [], []
    for rows in (tuning, held_out):
        asked = questions(rows, choices, loaded.collate, LONGEST)
        scores.append(score(model, asked, loaded.collate))
        truths.append([question.answer for question in asked])
    threshold = best_threshold(scores[0], truths[0], choices)
    by_threshold = report(guesses(scores[1], threshold), truths[1], choices)
    return {name: classify(scores[1], truths[1], choices), f"{name}, threshold from training mails": by_threshold}


def guesses(scores: Scores, threshold: float) -> npt.NDArray[np.int64]:
    """The second choice where it leads the first by less than ``-threshold``: 0 for ties with the likeliest."""
    return (scores[:, 0] - scores[:, 1] < threshold).astype(np.int64)


def best_threshold(scores: Scores, truth: Sequence[int], choices: Sequence[str]) -> float:
    """The lead of the first choice from which it is taken, best by macro F1; halfway between two rows' leads."""
    leads = np.unique(scores[:, 0] - scores[:, 1])
    between = [*((leads[1:] + leads[:-1]) / 2), 0.0]
    return float(max(between, key=lambda at: report(guesses(scores, at), truth, choices)["macro_f1"]))


def tf_idf(train: Sequence[Sourced], held_out: Sequence[Sourced], choices: Sequence[str]) -> dict[str, Any]:
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000)
    )
    model.fit([mail(row) for row in train], answers(train, choices))
    return report(model.predict([mail(row) for row in held_out]), answers(held_out, choices), choices)


def answers(rows: Sequence[Sourced], choices: Sequence[str]) -> list[int]:
    return [list(choices).index(turns(row)[-1].content) for row in rows]


def mail(row: Sourced) -> str:
    """The mail: what the user sends. The instruction is in the system's turn."""
    return turns(row)[-2].content


def balanced(rows: Sequence[Sourced], choices: Sequence[str], count: int) -> list[Sourced]:
    """The first ``count`` rows taking the choices in turn."""
    piles = [[row for row in rows if turns(row)[-1].content == choice] for choice in choices]
    return [row for group in zip(*piles, strict=False) for row in group][:count]


def with_shots(row: Sourced, shots: Sequence[Sourced]) -> Sourced:
    """The row with other mails asked and answered before it."""
    before = [replace(turn, weight=0.0) for shot in shots for turn in turns(shot)]
    return replace(row, example=Conversation((*before, *turns(row))))


def turns(row: Sourced) -> tuple[Turn, ...]:
    assert isinstance(row.example, Conversation)
    return row.example.turns


if __name__ == "__main__":
    main()
