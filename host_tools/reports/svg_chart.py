"""Line charts as SVG, in a page or a picture: no script, no font and no file beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file

from .curves import ACROSS, LOSS_TITLE, Point, metric_title, run_curves

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 30, 44
"""Names of lines stand above the lines, so that they cover none."""
_TITLE = 28
"""Height of a chart's title in a picture."""
TEXT_STYLE = "svg text { font: 12px system-ui, sans-serif; fill: #444 }"
_COLOURS = ("#1f77b4", "#d9730d")
"""Of two runs."""
_MOST_POINTS = 400
"""Most points of a line: more cannot be told apart."""


@dataclass(frozen=True)
class Line:
    """Points ``(x, y)`` by ``x``, under a name."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dots: bool = True


def chart(lines: Sequence[Line], across: str, said: Callable[[float], str]) -> str:
    """An ``<svg>`` element; a sentence where there is nothing to draw.

    Args:
        across: what the axis at the bottom counts.
        said: a value of the axis at the left as text.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not points:
        return "<p class=note>Nothing was recorded.</p>"
    right = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    if high == low:
        low, high = low - 0.5, high + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        across_share, up_share = x / right, (y - low) / (high - low)
        return (
            round(_LEFT + across_share * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up_share * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [f'<svg {size} role="img">']
    for tick in _ticks(low, high):
        _, y = place(0, tick)
        parts.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{said(tick)}</text>')
    for tick in _ticks(0, right):
        x, _ = place(tick, low)
        parts.append(
            f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{escape(across)}</text>')
    names = []
    for line in lines:
        shown = [place(x, y) for x, y in _thinned(line.points) if math.isfinite(y)]
        path = " ".join(f"{x},{y}" for x, y in shown)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"/>'
        )
        if line.dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{line.colour}"/>' for x, y in shown]
        names.append(f'<tspan style="fill:{line.colour}">{escape(line.name)}</tspan>')
    # An em space, not a shift, which browsers leave out of what ends at the anchor.
    told = "&#8195;".join(names)
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="14" text-anchor="end">{told}</text>')
    return "\n".join([*parts, "</svg>"])


def draw_runs(runs: Mapping[str, Path], file: Path) -> None:
    """Draw the held-out evaluations of two run folders, by name, into one SVG, for a reader who
    knows none of this project's words.

    Raises:
        JournalError: a run is damaged or missing.
        SeedtuneError: the picture cannot be written.
    """
    found = {name: run_curves(run) for name, run in runs.items()}
    one = next(iter(found.values()))

    def drawn(value: Callable[[Point], float], said: Callable[[float], str]) -> str:
        lines = [
            Line(name, [(each.forwards, value(each)) for each in curves.evaluated], colour)
            for (name, curves), colour in zip(found.items(), _COLOURS, strict=True)
        ]
        return chart(lines, ACROSS, said)

    charts = {
        LOSS_TITLE: drawn(lambda each: each.loss, lambda value: f"{value:.3g}"),
        metric_title(one.metric, one.higher_is_better): drawn(lambda each: each.metric, one.said),
    }
    height = _TITLE + _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height * len(charts)}">',
        f'<style>{TEXT_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for place, (title, each) in enumerate(charts.items()):
        parts.append(f'<g transform="translate(0 {place * height})">')
        parts.append(f'<text x="8" y="20" style="font-size: 15px">{escape(title)}</text>')
        parts.append(f'<g transform="translate(0 {_TITLE})">{each}</g></g>')
    try:
        replace_file(file, "\n".join([*parts, "</svg>\n"]).encode())
    except OSError as error:
        raise SeedtuneError(f"{file}: cannot be written: {error.strerror or error}") from error


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = -(-len(points) // _MOST_POINTS)
    return points[::step] if step > 1 else points


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, three to seven of them."""
    power = 10 ** math.floor(math.log10((high - low) / 4))
    width = next(size * power for size in (1, 2, 5, 10) if (high - low) / (size * power) <= 6)
    first = math.ceil(low / width)
    return [round(number * width, 12) for number in range(first, math.floor(high / width) + 1)]
