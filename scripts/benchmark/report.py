"""The bench's figures as a table, beside what was aimed at, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
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

`scripts/bench`, {found["minutes"]} minutes. {found["machine"]}. peftctl: {found["versions"]}. Peers: {found["peers"]}.

{found["model"]} in bfloat16, LoRA of rank 16 on all linear layers, 8 rows an update, rows of up to 1024 tokens (numpy's
documentation as chats, in one order for all), constant learning rate 2e-4; every token learned (TRL's default) unless it
says *assistant only*. Each figure is the median over updates, the first of each process left out, with the smallest and
largest; jobs that are compared ran in turns (A B A B), each in a process of its own. *Above floor* is the peak without
what importing the libraries takes. The held-out loss is that of the saved adapter, by plain PEFT, after the same rows.

{table(jobs(found))}

## Targets

{table(targets(found))}

`needed work` counts the floating-point operations that the step cannot do without ({found["work_per_token"] / 1e6:.0f}
million a token); `matrix rate` is what products of the model's shapes reach alone, {found["rate"][1] / 1e9:.0f} GFLOP/s
with one thread and {found["rate"][2] / 1e9:.0f} with two.

## Preparing rows

Two cores. Template, ids, mask and packing; the file is read by both before the clock starts.

{table(rows(found))}

## Where our step's time goes

One thread, torch's profiler (which itself takes some), seconds inside each operator over two updates.

{table(operators(found))}
"""


def jobs(found: Result) -> list[Sequence[str]]:
    head = ("", "tokens / CPU-s", "tokens / s", "peak GB", "above floor GB", "first step s", "held-out loss")
    made: list[Sequence[str]] = [head]
    for name, entry in found["jobs"].items():
        if "error" in entry:
            made.append((name, f"failed: {entry['error']}", *[""] * 5))
            continue
        speeds = [spread(entry["per_cpu_s"]), spread(entry["per_s"])] if entry["per_s"] else [
            f"{median(entry['seconds_per_update'][1:] or entry['seconds_per_update']):.1f} s an update", ""]  # fmt: skip
        above = max(peak - floor for peak, floor in zip(entry["peak"], entry["floor"], strict=True))
        loss = f"{entry['eval_loss']:.4f}" if "eval_loss" in entry else ""
        made.append(
            (
                name,
                *speeds,
                f"{max(entry['peak']) / 1e9:.2f}",
                f"{above / 1e9:.2f}",
                f"{median(entry['first_step_s']):.1f}",
                loss,
            )  # fmt: skip
        )
    return made


def targets(found: Result) -> list[Sequence[str]]:
    """What was aimed at and what came out, from the medians above; the faster of our two settings, named."""
    entries = found["jobs"]
    made: list[Sequence[str]] = [("", "target", "peftctl", "with compile")]

    def both(name: str, target: str, ratio: Any) -> None:
        cells = []
        for ours in (OURS, COMPILED):
            try:
                cells.append(ratio(ours))
            except (KeyError, ValueError, IndexError):
                cells.append("")
        made.append((name, target, *cells))

    def speed(name: str, key: str = "per_cpu_s") -> float:
        return median(entries[name][key])

    def best(key: str, *, threads: int) -> float:
        peers = [
            e for n, e in entries.items() if not n.startswith("peftctl") and e["threads"] == threads and e.get(key)
        ]
        return max(median(entry[key]) for entry in peers if n_all_learned(entry, entries))

    def peak(name: str) -> float:
        return float(max(entries[name]["peak"]))

    def times(value: float) -> str:
        return f"{value:.2f}x"

    both("tokens / CPU-s against TRL, 4 padded rows", ">= 8x", lambda o: times(speed(o) / speed(FOUR)))
    both("against the best peer", ">= 3x", lambda o: times(speed(o) / best("per_cpu_s", threads=1)))
    both(
        "tokens / s, two threads, against the best peer", ">= 3x",
        lambda o: times(speed(f"{o}, 2 threads", "per_s") / best("per_s", threads=2)),
    )  # fmt: skip
    both(
        "needed work / s, of the matrix rate", ">= 70 %",
        lambda o: f"{100 * speed(o) * found['work_per_token'] / found['rate'][1]:.0f} %",
    )  # fmt: skip
    both("peak memory against TRL's smallest", "<= 0.6x", lambda o: times(peak(o) / min(
        max(e["peak"]) for n, e in entries.items() if n.startswith("TRL") and e.get("peak"))))  # fmt: skip
    both("time to first step against TRL, 1 row", "<= 0.7x", lambda o: times(
        median(entries[o]["first_step_s"]) / median(entries[ONE]["first_step_s"])))  # fmt: skip
    both(
        "held-out loss against TRL's",
        "within 1 %",
        lambda o: f"{entries[o]['eval_loss'] / entries[ONE]['eval_loss'] - 1:+.2%}",
    )
    for learned, tools in found["rows"].items():
        if all("wall_s" in tool for tool in tools.values()):
            ratio = (tools["trl_rows"]["wall_s"] / tools["trl_rows"]["rows"]) / (
                tools["peftctl_rows"]["wall_s"] / tools["peftctl_rows"]["rows"]
            )
            made.append((f"rows prepared / s, learned: {learned}, against TRL", ">= 2.5x", times(ratio), ""))
    start = found.get("start_up_s", {})
    if start:
        made.append(("", "", "", ""))
        made.append(("start-up: " + ", ".join(f"{name} {taken:.2f} s" for name, taken in start.items()), "", "", ""))
    return made


def n_all_learned(entry: Result, entries: Result) -> bool:
    """Whether the entry's job learned every token, as the jobs it is compared with."""
    return not any(value is entry and name.endswith("assistant only") for name, value in entries.items())


def rows(found: Result) -> list[Sequence[str]]:
    made: list[Sequence[str]] = [("learned", "tool", "rows", "rows / s", "rows / CPU-s")]
    for learned, tools in found["rows"].items():
        for tool, entry in tools.items():
            name = {"peftctl_rows": "peftctl", "trl_rows": "TRL"}[tool]
            if "error" in entry:
                made.append((learned, name, f"failed: {entry['error']}", "", ""))
                continue
            count = entry["rows"]
            made.append(
                (learned, name, f"{count:,}", f"{count / entry['wall_s']:.0f}", f"{count / entry['cpu_s']:.0f}")
            )
    return made


def operators(found: Result) -> list[Sequence[str]]:
    measured = found["jobs"].get("profile", {}).get("operators") or []
    total = sum(seconds for _, _, seconds in measured)
    made: list[Sequence[str]] = [("operator", "calls", "seconds", "share")]
    for name, calls, seconds in measured[:OPERATORS]:
        made.append((name, f"{calls:,}", f"{seconds:.2f}", f"{seconds / total:.1%}"))
    return made if measured else []


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def table(rows: list[Sequence[str]]) -> str:
    """A Markdown table that reads well as it stands."""
    if len(rows) < 2:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
