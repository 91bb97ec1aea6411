"""The bench's figures as a table, beside what was aimed at, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import StatisticsError, median
from typing import Any

Result = dict[str, Any]
OPERATORS = 16
OURS, COMPILED = "peftctl", "peftctl, compile"
FOUR, ONE = "TRL, 4 padded rows", "TRL, 1 row"


def text(found: Result) -> str:
    """The tables, for a terminal."""
    parts = [table(jobs(found)), table(targets(found)), table(rows(found)), table(operators(found))]
    return "\n\n".join(part for part in parts if part)


def page(found: Result) -> str:
    """docs/results/bench.md."""
    return f"""# Training beside TRL and Hugging Face's Trainer

`scripts/bench`, {found["minutes"]} minutes. {found["machine"]}.
peftctl: {found["versions"]}.
Peers: {found["peers"]}.

{found["model"]} in bfloat16, LoRA of rank 16 on all linear layers, 8 rows an update, rows of up to 1024 tokens
(numpy's documentation as chats, in one order for all), constant learning rate 2e-4; every token learned (TRL's default)
unless it says *assistant only*. Each figure is the median over updates, the first of each process left out, with the
smallest and largest; jobs that are compared ran in turns (A B A B), each in a process of its own. *Above floor* is the
peak without what importing the libraries takes. The held-out loss is that of the trained adapter, by plain PEFT, after
the same rows.

{table(jobs(found))}

## Targets

{table(targets(found))}

`needed work` counts the floating-point operations that the step cannot do without ({found["work_per_token"] / 1e6:.0f}
million a token); `matrix rate` is what products of the model's shapes reach alone, {found["rate"]["1"] / 1e9:.0f}
GFLOP/s with one thread and {found["rate"]["2"] / 1e9:.0f} with two.

Start-up: {", ".join(f"`{name}` {taken:.2f} s" for name, taken in found["start_up_s"].items())}.

## Preparing rows

{found.get("rows_machine", found["machine"])}. Template, ids, mask and packing; the file is read by both before the
clock starts.

{table(rows(found))}

## Where our step's time goes

With `compile: true`, one thread, torch's profiler (which itself takes some): seconds inside each operator over two
updates.

{table(operators(found))}
"""


def jobs(found: Result) -> list[Sequence[str]]:
    head = ("", "tokens / CPU-s", "tokens / s", "peak GB", "above floor GB", "first step s", "held-out loss")
    made: list[Sequence[str]] = [head]
    for name, entry in found["jobs"].items():
        if "error" in entry:
            made.append((name, f"failed: {entry['error']}", *[""] * 5))
            continue
        if entry["per_s"]:
            speeds = [spread(entry["per_cpu_s"]), spread(entry["per_s"])]
        else:
            seconds = entry["seconds_per_update"]
            speeds = [f"{median(seconds[1:] or seconds):.1f} s an update", ""]
        above = max(peak - floor for peak, floor in zip(entry["peak"], entry["floor"], strict=True))
        memory = [f"{max(entry['peak']) / 1e9:.2f}", f"{above / 1e9:.2f}"]
        loss = f"{entry['eval_loss']:.4f}" if "eval_loss" in entry else ""
        made.append((name, *speeds, *memory, f"{median(entry['first_step_s']):.1f}", loss))
    return made


class Ratios:
    """What was aimed at, as functions of one of our two settings."""

    def __init__(self, found: Result) -> None:
        self.found, self.jobs = found, found["jobs"]

    def speed(self, name: str, key: str = "per_cpu_s") -> float:
        return float(median(self.jobs[name][key]))

    def best(self, key: str, threads: int, tool: str) -> float:
        """The tool's fastest setting with so many threads, every token learned."""
        return max(
            self.speed(name, key)
            for name, entry in self.jobs.items()
            if name.startswith(tool)
            and entry["threads"] == threads
            and entry.get(key)
            and not name.endswith("assistant only")
        )

    def four_rows(self, ours: str) -> str:
        return times(self.speed(ours) / self.speed(FOUR))

    def best_trl(self, ours: str) -> str:
        return times(self.speed(ours) / self.best("per_cpu_s", 1, "TRL"))

    def best_trainer(self, ours: str) -> str:
        return times(self.speed(ours) / self.best("per_cpu_s", 1, "Trainer"))

    def two_threads(self, ours: str) -> str:
        return times(self.speed(f"{ours}, 2 threads", "per_s") / self.best("per_s", 2, "TRL"))

    def matrix_rate(self, ours: str) -> str:
        return f"{100 * self.speed(ours) * self.found['work_per_token'] / self.found['rate']['1']:.0f} %"

    def memory(self, ours: str) -> str:
        """Beside TRL's fastest setting: others that take less memory are slower."""
        return times(max(self.jobs[ours]["peak"]) / max(self.jobs[ONE]["peak"]))

    def first_step(self, ours: str) -> str:
        return times(median(self.jobs[ours]["first_step_s"]) / median(self.jobs[ONE]["first_step_s"]))

    def held_out(self, ours: str) -> str:
        return f"{self.jobs[ours]['eval_loss'] / self.jobs[ONE]['eval_loss'] - 1:+.2%}"


def targets(found: Result) -> list[Sequence[str]]:
    """What was aimed at and what came out, from the medians."""
    ratios = Ratios(found)
    aims = (
        ("tokens / CPU-s against TRL, 4 padded rows", ">= 8x", ratios.four_rows),
        ("tokens / CPU-s against TRL's best setting", ">= 3x", ratios.best_trl),
        ("tokens / CPU-s against Trainer + PEFT's best", "", ratios.best_trainer),
        ("tokens / s, two threads, against TRL, 1 row", ">= 3x", ratios.two_threads),
        ("needed work / s, of the matrix rate", ">= 70 %", ratios.matrix_rate),
        ("peak memory against TRL's best, 1 row", "<= 0.6x", ratios.memory),
        ("time to first step against TRL, 1 row", "<= 0.7x", ratios.first_step),
        ("held-out loss against TRL's", "within 1 %", ratios.held_out),
    )
    made: list[Sequence[str]] = [("", "target", "compile: false", "compile: true")]
    for name, target, ratio in aims:
        cells = []
        for ours in (OURS, COMPILED):
            try:
                cells.append(ratio(ours))
            except (KeyError, ValueError, StatisticsError):  # not measured in a short round
                cells.append("")
        made.append((name, target, *cells))
    for learned, tools in found["rows"].items():
        if all("wall_s" in tool for tool in tools.values()):
            ours, theirs = (tools[name]["wall_s"] / tools[name]["rows"] for name in ("peftctl_rows", "trl_rows"))
            made.append((f"rows prepared / s against TRL, learned: {learned}", ">= 2.5x", times(theirs / ours), ""))
    return made


def times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def rows(found: Result) -> list[Sequence[str]]:
    made: list[Sequence[str]] = [("learned", "tool", "rows", "rows / s", "rows / CPU-s")]
    for learned, tools in found["rows"].items():
        for tool, entry in tools.items():
            name = {"peftctl_rows": "peftctl", "trl_rows": "TRL"}[tool]
            if "error" in entry:
                made.append((learned, name, f"failed: {entry['error']}", "", ""))
                continue
            count = entry["rows"]
            speeds = [f"{count / entry[clock]:.0f}" for clock in ("wall_s", "cpu_s")]
            made.append((learned, name, f"{count:,}", *speeds))
    return made


def operators(found: Result) -> list[Sequence[str]]:
    measured = found["jobs"].get("profile", {}).get("operators") or []
    total = sum(seconds for _, _, seconds in measured)
    made: list[Sequence[str]] = [("operator", "calls", "seconds", "share")]
    for name, calls, seconds in measured[:OPERATORS]:
        short = name.replace("#", "").strip()[:40]
        made.append((short, f"{calls:,}", f"{seconds:.2f}", f"{seconds / total:.1%}"))
    return made if measured else []


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def table(rows: list[Sequence[str]]) -> str:
    """A Markdown table that reads well as it stands."""
    if len(rows) < 2:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
