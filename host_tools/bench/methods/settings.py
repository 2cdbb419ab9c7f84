"""The methods of ``bench quality``, with the settings that they are compared at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from seedtune.runtime.estimators import ESTIMATORS, forwards_a_step, with_defaults
from seedtune.runtime.settings import Settings


@dataclass(frozen=True)
class Method:
    """How one method runs, beside what all share.

    ``run(task, settings, folder, progress)`` of ``module`` gives ``curve`` (see
    ``tuning_run.learn``) and what else is of note; ``settings`` are those of the cell and ``seed``,
    ``threads``, ``source`` (of the model) and ``bundle`` (a path).
    """

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Part of every cell's key. With ``forwards``, the option of that name sets it."""
    by_task: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What differs from ``settings`` on a task."""
    seeded: bool = True
    """Whether the seed makes a difference; if not, the first alone is run."""
    bundle: bool = False
    """Whether it needs an exported program, or the mask of one."""
    lengthens: bool = False
    """Whether a longer run goes on where a shorter one ended."""
    float32: bool = True
    """Whether ``task`` is a ``FloatTask``; else it is ``TaskData``."""


_FORWARDS: dict[str, Any] = {"forwards": 1000, "eval_every": 100}
_TUNER: dict[str, Any] = {
    **_FORWARDS,
    "noise": "rademacher",
    "lr": 1e-4,
    "eps": 1e-2,
    "schedule": "linear",
}
"""Of two-point; twice this rate reached 70.4 % on SST-2 after 100 steps, this one 72.0 %."""
_TWO_POINT = {**_TUNER, "estimator": "two-point"}
MASKS = ("sensitive", "random", "magnitude", "per-layer", "task")
"""See ``mask_places``."""
_MASKED: dict[str, Any] = {
    **_TUNER,
    "forwards": 400,
    "eval_every": 200,
    "estimator": "per-example",
    "lr": "auto",
    "eps": "auto",
}
"""Seeds alone as an app would have them, on float weights: the masks have nothing else apart."""
_LORA: dict[str, Any] = {
    "steps": 60,
    "eval_at": [0, 10, 20, 30, 40],
    "lr": 5e-4,
    "rank": 8,
    "alpha": 16,
}
"""Rate and rank of SST-2 in the paper's table 9."""
_LORA_ON = {"chat": {"steps": 100, "eval_at": [0, 5, 10, 15, 20, 25, 50]}}
"""1 600 messages."""
_READOUT: dict[str, Any] = {
    "estimator": "readout",
    "eval_every": 20,
    "lr": "auto",
    "eps": "auto",
    "schedule": "constant",
}
_INT4: dict[str, dict[str, Any]] = {
    **{name: {"estimator": name} for name in ESTIMATORS if name != "text-head"},
    "per-example": {"estimator": "per-example", "lr": "auto", "eps": "auto"},
    "readout": _READOUT,
}
"""What differs from two-point's for each ``int4-NAME``; an estimator may stand here twice."""
_TEXT_HEAD: dict[str, Any] = {
    "estimator": "text-head",
    "steps": 100,
    "eval_every": 10,
    "lr": "auto",
    "eps": "auto",
    "schedule": "constant",
    "remember": True,
}
"""1 600 messages once, as LoRA has them, however many forwards the others take."""

METHODS: dict[str, Method] = {
    "zero-shot": Method("prompting", {"shots": 0}, seeded=False),
    "in-context": Method("prompting", {"shots": 8}),
    "mezo-fp32": Method("mezo_fp32", {**_FORWARDS, "lr": 3e-5, "eps": 1e-3}, lengthens=True),
    "random-fp32": Method("sparse_fp32", {**_TWO_POINT, "mask": "random"}, bundle=True),
    "sensitive-fp32": Method("sparse_fp32", {**_TWO_POINT, "mask": "sensitive"}, bundle=True),
    **{
        f"{mask}-mask-fp32": Method("sparse_fp32", {**_MASKED, "mask": mask}, bundle=True)
        for mask in MASKS
    },
    "readout-fp32": Method("sparse_fp32", {**_TUNER, **_READOUT, "mask": "sensitive"}, bundle=True),
    **{
        f"int4-{name}": Method("int4", {**_TUNER, **own}, bundle=True, float32=False)
        for name, own in _INT4.items()
    },
    "int4-text-head": Method("int4", _TEXT_HEAD, bundle=True, float32=False),
    "int4-text-head-alone": Method(
        "int4", {**_TEXT_HEAD, "remember": False}, bundle=True, float32=False
    ),
    "lora": Method("lora", _LORA, _LORA_ON),
}


def tuner_settings(settings: dict[str, Any]) -> Settings:
    """The tuner's settings for a cell's: counts of forwards become counts of steps."""
    fields = {field.name for field in dataclasses.fields(Settings)}
    own = Settings(**{name: value for name, value in settings.items() if name in fields})
    probes = forwards_a_step(own)
    given = [name for name in ("forwards", "eval_every") if name in settings]
    counts = {name: max(1, settings[name] // probes) for name in given}
    return dataclasses.replace(
        own, steps=counts.get("forwards", own.steps), eval_every=counts["eval_every"]
    )


def resolved_settings(settings: dict[str, Any]) -> Settings:
    """``tuner_settings`` with the estimator's own values of what was left to it, as the tuner has
    them."""
    return with_defaults(tuner_settings(settings))
