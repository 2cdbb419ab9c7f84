"""What a run's curve says: whether more steps would help, and how long twice as many would take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from seedtune.runtime.journal.history import History

FELL = 0.05
"""Of everything that the loss has fallen: less than that over the last third of a run is flat."""
ROSE = 0.1
"""Of everything that the loss has fallen: more than that above its lowest point is overfitting."""
LEAST = 0.005
"""Of the loss at the start: less than that is noise of a few hundred rows, whatever it is of."""

Shape = Literal["falling", "flat", "overfitting", "no gain", "unknown"]


class Curve(NamedTuple):
    """``shape`` for programs, ``text`` for people."""

    shape: Shape
    text: str


def read_curve(history: History, steps: Sequence[dict[str, Any]]) -> Curve:
    """What held-out losses say or, without held-out rows, the losses of batches.

    Args:
        steps: lines of ``metrics.jsonl`` (see ``metrics.read_metrics``), for the latter.
    """
    points = [(item.step, item.loss) for item in history.evaluations if math.isfinite(item.loss)]
    if history.evaluations:
        return _of_held_out(points)
    return _of_batches([float(line["loss"]) for line in steps if line.get("loss") is not None])


def _of_held_out(points: list[tuple[int, float]]) -> Curve:
    if len(points) < 3:
        return Curve(
            "unknown",
            "too few evaluations to tell whether more steps would help; more come with "
            "--eval-every N",
        )
    (_, start), (end, last) = points[0], points[-1]
    best_step, lowest = min(points, key=lambda point: point[1])
    fallen, noise = start - lowest, LEAST * abs(start)
    if fallen <= noise:
        return Curve("no gain", "the held-out loss never fell below its start")
    if last - lowest > max(ROSE * fallen, noise):
        return Curve(
            "overfitting",
            f"the held-out loss rises since step {best_step} ({lowest:.3g}, now {last:.3g}): "
            "overfitting; more steps would not help, more rows would",
        )
    before = _at(points, end - max(1, end // 3))
    if before - min(last, lowest) > max(FELL * fallen, noise):
        return Curve(
            "falling",
            f"the held-out loss still falls ({before:.3g} to {last:.3g} over the last third); "
            "more would help",
        )
    return Curve(
        "flat",
        f"the held-out loss is flat over the last third ({before:.3g} to {last:.3g}); more steps "
        "would help little",
    )


def _at(points: list[tuple[int, float]], step: int) -> float:
    """The loss at ``step``, between the evaluations around it."""
    (left, low), (right, high) = points[0], points[-1]
    for at, loss in points:
        if at <= step:
            left, low = at, loss
        else:
            right, high = at, loss
            break
    return low if right == left else low + (high - low) * (step - left) / (right - left)


def _of_batches(losses: list[float]) -> Curve:
    """Of batches alone, which differ: two standard errors tell a fall from chance."""
    third = len(losses) // 3
    if third < 5:
        return Curve("unknown", "too few steps to tell whether more would help")
    before, after = losses[-2 * third : -third], losses[-third:]
    error = math.sqrt(_variance(before) / third + _variance(after) / third)
    drop = sum(before) / third - sum(after) / third
    rest = "; only held-out rows (--data) can tell learning from learning by heart"
    if drop > 2 * error:
        return Curve("falling", f"the loss of the training rows still falls{rest}")
    return Curve("flat", f"the loss of the training rows is flat over the last third{rest}")


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


def seconds_of_as_many_again(history: History, lines: Sequence[dict[str, Any]]) -> float | None:
    """Seconds that as many further steps and evaluations as the run has would take, or None where
    nothing was timed.

    Args:
        lines: of ``metrics.jsonl``, which may hold only every n-th step of a long run.
    """
    total = 0.0
    for kind, count in (("step", history.steps), ("evaluation", len(history.evaluations))):
        timed = [float(line["seconds"]) for line in lines if line["kind"] == kind]
        if timed:
            total += sum(timed) / len(timed) * count
    return total or None


def duration(seconds: float) -> str:
    """``95 s``, ``7 min`` or ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
