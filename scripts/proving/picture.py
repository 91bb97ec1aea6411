"""Loss curves as an SVG picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT, TOP = 760, 360, 50, 40, 20, 20
COLOURS = ("#1f77b4", "#222222", "#999999", "#d62728", "#2ca02c")


def curves(lines: Mapping[str, Sequence[float]]) -> str:
    """One line a name, over updates counted from 1; the vertical axis spans what there is."""
    lowest, highest = min(map(min, lines.values())), max(map(max, lines.values()))
    updates = max(map(len, lines.values()))

    def x(update: float) -> float:
        return LEFT + (update - 1) / max(updates - 1, 1) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (loss - lowest) / (highest - lowest) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for step in range(5):
        loss = lowest + (highest - lowest) * step / 4
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#dddddd"/>'
            f'<text x="{LEFT - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>'
        )
    for update in sorted({1, *range(10, updates + 1, 10), updates}):
        parts.append(f'<text x="{x(update):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{update}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">update</text>')
    for index, (name, losses) in enumerate(lines.items()):
        points = " ".join(f"{x(at):.1f},{y(loss):.1f}" for at, loss in enumerate(losses, start=1))
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        place = f'x="{WIDTH - RIGHT - 4}" y="{TOP + 16 * (index + 1)}"'
        parts.append(f'<text {place} text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
