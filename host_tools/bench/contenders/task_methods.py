"""The methods of ``bench quality``, with the settings that they are compared at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from seedtune.runtime.estimators import settings_of, spec_of
from seedtune.runtime.settings import Settings, options_of


@dataclass(frozen=True)
class Method:
    """How one method runs, beside what all share.

    ``run_on_task(task, settings)`` of ``module`` gives ``curve`` (see ``runs.tune``) and what else
    is of note; ``settings`` are those of the cell and ``seed``, ``threads``, ``source`` (of the
    model) and ``bundle`` (a path).
    """

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Part of every cell's key. With ``forwards``, the option of that name sets it."""
    by_task: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What differs from ``settings`` on a task."""
    bundle: bool = False
    """Whether it needs an exported program, or the mask of one."""

    @property
    def float32(self) -> bool:
        """Whether ``task`` is a ``FloatTask``; else it is ``TaskData``."""
        return self.module != "int4"


_FORWARDS: dict[str, Any] = {"forwards": 1000, "eval_every": 100}
_TUNER: dict[str, Any] = {
    **_FORWARDS,
    "lr": 1e-4,
    "eps": 1e-2,
    "schedule": "linear",
}
"""Two-point's; twice this rate reached 70.4 % on SST-2 after 100 steps, this one 72.0 %."""
_TWO_POINT = {**_TUNER, "estimator": "two-point"}
MASKS = ("sensitive", "random", "magnitude", "per-layer", "task")
"""See ``sparse_fp32.places_of``."""
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
_GRADIENT: dict[str, Any] = {
    **_FORWARDS,
    "estimator": "mlp-gradient",
    "eval_every": 100,
    "lr": "auto",
    "schedule": "linear",
}
_READOUT: dict[str, Any] = {
    **_TUNER,
    "estimator": "readout",
    "eval_every": 20,
    "lr": "auto",
    "eps": "auto",
    "schedule": "constant",
}
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


def _float32(mask: str, settings: dict[str, Any]) -> Method:
    """The tuner on the entries of a mask of the float32 model."""
    return Method("sparse_fp32", {**settings, "mask": mask}, bundle=True)


def _int4(settings: dict[str, Any]) -> Method:
    return Method("int4", settings, bundle=True)


METHODS: dict[str, Method] = {
    "mezo-fp32": Method("mezo", {**_FORWARDS, "lr": 3e-5, "eps": 1e-3}),
    "random-fp32": _float32("random", _TWO_POINT),
    "sensitive-fp32": _float32("sensitive", _TWO_POINT),
    **{f"{mask}-mask-fp32": _float32(mask, _MASKED) for mask in MASKS},
    "int4-readout": _int4(_READOUT),
    "int4-readout-shown": _int4({**_READOUT, "demonstrations": "auto"}),
    "int4-per-example": _int4({**_TUNER, "estimator": "per-example", "lr": "auto", "eps": "auto"}),
    "int4-mlp-gradient": _int4(_GRADIENT),
    "int4-two-point": _int4(_TWO_POINT),
    "int4-text-head": _int4(_TEXT_HEAD),
    "int4-text-head-alone": _int4({**_TEXT_HEAD, "remember": False}),
    "int4-head-only": _int4({**_TEXT_HEAD, "terms": False}),
    "int4-head-only-alone": _int4({**_TEXT_HEAD, "terms": False, "remember": False}),
    "lora": Method("lora", _LORA, _LORA_ON),
}


def tuner_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What the tuner is asked for by a cell: counts of forwards become counts of steps, and the
    options of other estimators are left out."""
    spec = spec_of(settings["estimator"])
    known = {*options_of(Settings), *options_of(spec.options)}
    own = {name: value for name, value in settings.items() if name in known}
    probes = settings_of(own).options.forwards
    given = {"steps": "forwards", "eval_every": "eval_every"}
    counts = {
        name: max(1, settings[asked] // probes)
        for name, asked in given.items()
        if asked in settings
    }
    return {**own, **counts}
