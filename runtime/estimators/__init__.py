"""Estimators: how looks at a batch become a step. One file each, behind one interface.

A new one is a file with ``FACTS`` in it and a line in ``ESTIMATORS``.
"""

from dataclasses import replace
from typing import Any

from ..errors import TuningError
from ..settings import Settings
from . import head_signs, per_example, readout, two_point
from .estimator import Estimator, Facts, Ground, Look, Measured, Shape

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Facts",
    "Ground",
    "Look",
    "Measured",
    "Shape",
    "complete",
    "facts_of",
    "forwards_a_step",
    "make_estimator",
    "with_defaults",
]

ESTIMATORS: dict[str, Facts] = {
    module.FACTS.name: module.FACTS for module in (readout, head_signs, per_example, two_point)
}
"""By name. The first that suits a run is its default."""


def facts_of(settings: Settings) -> Facts:
    """Of the estimator that ``settings`` name.

    Raises:
        TuningError: there is no such estimator, or it does not take that many directions.
    """
    facts = ESTIMATORS.get(settings.estimator or "")
    if facts is None:
        raise TuningError(
            f"setting estimator={settings.estimator!r} must be one of {', '.join(ESTIMATORS)}"
        )
    count = settings.directions or facts.directions
    if not facts.least_directions <= count <= facts.most_directions:
        least, most = facts.least_directions, facts.most_directions
        bounds = f"{least} to {most}" if least < most else str(most)
        raise TuningError(f"setting directions={count} must be {bounds} for {facts.name}")
    return facts


def complete(settings: Settings, ground: Ground) -> Settings:
    """``settings`` with everything that was left to the estimator, fitted to what a run has.

    ``lr`` and ``eps`` may still be ``auto``, which calls for a measurement.

    Raises:
        TuningError: no such estimator, or it cannot run on this ground as asked.
    """
    if settings.estimator is None:
        usual = next(facts for facts in ESTIMATORS.values() if facts.suits(ground))
        settings = replace(settings, estimator=usual.name)
    facts = facts_of(settings)
    for name in ("lr", "eps", "schedule", "warmup"):
        asked = getattr(settings, name)
        if name in facts.ignores and asked not in (None, "auto", 0, getattr(facts, name, None)):
            raise TuningError(
                f"setting {name}={asked} means nothing to estimator {facts.name}, which solves for "
                f"its step; leave it out, or take another estimator"
            )
    return with_defaults(facts.fit(settings, ground))


def with_defaults(settings: Settings) -> Settings:
    """``settings`` with the estimator's own values of what was left to it, whatever the ground.

    Raises:
        TuningError: as ``facts_of``.
    """
    facts = facts_of(settings)
    own: dict[str, Any] = {
        name: getattr(facts, name)
        for name in ("lr", "eps", "schedule", "steps", "eval_every")
        if getattr(settings, name) is None
    }
    if facts.own_rates:
        measured = [name for name in ("lr", "eps") if getattr(settings, name) == "auto"]
        own |= {name: getattr(facts, name) for name in measured}
    own["remember"] = "remember" not in facts.ignores and settings.remember is not False
    return replace(settings, directions=settings.directions or facts.directions, **own)


def make_estimator(settings: Settings, shape: Shape | None = None) -> Estimator:
    """A fresh estimator for a run of these settings.

    Args:
        shape: what it fixed for the run (see ``Facts.shape``).

    Raises:
        ValueError: sizes that make no sense.
    """
    return facts_of(settings).make(settings, shape)


def forwards_a_step(settings: Settings) -> int:
    """Forwards that a step of these settings takes."""
    settings = with_defaults(settings)
    return facts_of(settings).forwards(settings.directions or 0)
