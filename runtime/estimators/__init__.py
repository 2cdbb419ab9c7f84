"""Estimators: how looks at a batch become a step. One file each, behind one interface.

A new one is a file with its options and its ``SPEC``, and a line in ``ESTIMATORS``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import TuningError
from ..scoring.part import Description, Part
from ..settings import Option, Settings, options_of
from . import mlp_gradient, per_example, readout, text_head_estimator, two_point
from .estimator import Estimator, EstimatorSpec, Measured, RunContext, Shape, StepContext

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "EstimatorSpec",
    "Measured",
    "RunContext",
    "Shape",
    "StepContext",
    "changed",
    "complete",
    "fit",
    "fixed_settings",
    "make_estimator",
    "part_of",
    "settings_of",
    "shape_of",
    "spec_of",
    "stored_settings",
]

ESTIMATORS: dict[str, EstimatorSpec[Any]] = {
    module.SPEC.name: module.SPEC
    for module in (readout, text_head_estimator, per_example, mlp_gradient, two_point)
}
"""By name. The first that suits a run is its default."""


def spec_of(name: str) -> EstimatorSpec[Any]:
    """Of the estimator of that name.

    Raises:
        TuningError: there is none.
    """
    found = ESTIMATORS.get(name)
    if found is None:
        raise TuningError(f"setting estimator={name!r} must be one of {', '.join(ESTIMATORS)}")
    return found


def complete(asked: Mapping[str, Any], context: RunContext) -> Settings:
    """Settings of a new run: what was asked for and, where nothing was, what suits the run.

    ``eps`` may still be ``auto``, which calls for a measurement.

    Args:
        asked: by name, those of ``Settings`` and of the estimator's options. None asks for nothing;
            nor does ``auto`` where it is not measured.

    Raises:
        TuningError: no such estimator, setting or option, a value that makes no sense, or an
            estimator that cannot run there.
    """
    name = asked.get("estimator")
    if name is None:
        name = next(spec.name for spec in ESTIMATORS.values() if spec.suits(context))
    return fit(settings_of({**asked, "estimator": name}), context)


def settings_of(asked: Mapping[str, Any]) -> Settings:
    """Settings for the estimator that is asked for, with the defaults that need no run to be known;
    ``steps`` and ``eval_every`` may still be open.

    Raises:
        TuningError: as ``complete``.
    """
    spec = spec_of(asked["estimator"])
    every, own = options_of(Settings), options_of(spec.options)
    for name, value in asked.items():
        if name in every or name in own or value is None:
            continue
        elsewhere = any(name in options_of(other.options) for other in ESTIMATORS.values())
        if elsewhere:
            has = f"its options: {', '.join(own)}" if own else "it has no options"
            raise TuningError(f"estimator {spec.name} has no option {name!r}; {has}")
        raise TuningError(f"there is no setting {name!r}; settings: {', '.join((*every, *own))}")
    return Settings(
        options=spec.options(**_given(asked, own)),
        **_given(asked, every),
    )


def fit(settings: Settings, context: RunContext) -> Settings:
    """``settings`` as a run there can have them, with nothing left open but what is measured.

    Raises:
        TuningError: it cannot run there as asked.
    """
    spec = spec_of(settings.estimator)
    settings = spec.fit(settings.options, settings, context)
    a_pass = max(1, context.examples // settings.batch_size)
    steps = settings.steps or spec.steps or a_pass
    every = spec.eval_every if settings.eval_every is None else settings.eval_every
    return replace(settings, steps=steps, eval_every=every)


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """``settings`` with other values for some, by name.

    Raises:
        TuningError: as ``complete``.
    """
    return settings_of({**settings.to_dict(), **changes})


def stored_settings(fields: Mapping[str, Any]) -> Settings:
    """Inverse of ``Settings.to_dict``; unknown or missing fields are refused.

    Raises:
        TuningError: fields of another version, or values that make no sense.
    """
    spec = spec_of(fields["estimator"])
    odd = sorted(set(fields) ^ {*options_of(Settings), *options_of(spec.options)})
    if odd:
        raise TuningError(f"settings do not fit this version: field {odd[0]!r}")
    return settings_of(fields)


def fixed_settings(settings: Settings) -> set[str]:
    """Names of the settings that a run keeps from its first step to its last."""
    known = options_of(Settings) | options_of(type(settings.options))
    own = {"batch_size"} if spec_of(settings.estimator).fixes_batch_size else set()
    return own | {name for name, one in known.items() if one.fixed}


def shape_of(settings: Settings, context: RunContext) -> Shape | None:
    """What the estimator fixes for such a run.

    Raises:
        TuningError: it cannot run there.
    """
    fixes = spec_of(settings.estimator).shape
    return None if fixes is None else fixes(settings.options, context)


def part_of(settings: Settings, context: RunContext) -> Description | None:
    """The part that the estimator moves beside the sensitive values of such a run.

    Raises:
        TuningError: it cannot run there.
    """
    describes = spec_of(settings.estimator).part
    return None if describes is None else describes(settings.options, context)


def make_estimator(
    settings: Settings, shape: Shape | None = None, part: Part | None = None
) -> Estimator:
    """A fresh estimator for a run of these settings.

    Args:
        shape: what it fixed for the run (see ``shape_of``).
        part: which the run's values begin with (see ``part_of``).

    Raises:
        ValueError: sizes that make no sense.
    """
    spec = spec_of(settings.estimator)
    for name, given, takes in (("shape", shape, spec.shape), ("part", part, spec.part)):
        if (given is None) != (takes is None):
            raise ValueError(f"{spec.name} {'needs a' if given is None else 'takes no'} {name}")
    return spec.make(settings.options, settings, shape, part)


def _given(asked: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """Values that were asked for among the known ones; ``auto`` is a value where it is a word."""
    found = {name: asked[name] for name in known if asked.get(name) is not None}
    return {
        name: value
        for name, value in found.items()
        if value != "auto" or "auto" in known[name].words
    }
