"""The methods of ``bench senders``, with the settings that they are compared at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LENGTH = 128
"""Tokens of a row at most: the bound of the exported program."""


@dataclass(frozen=True)
class Method:
    """``run_on_person(person, settings, progress)`` of ``module`` gives ``test`` and ``other``, and
    what else is of note."""

    module: str
    start: str
    """The method that is its model, untouched."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Part of every cell's key."""
    by_messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Further ones for so many messages."""
    learns: bool = True

    @property
    def bundle(self) -> bool:
        """Whether it runs the exported program."""
        return self.module == "int4"

    def settings_for(self, messages: int) -> dict[str, Any]:
        return {"seed": 0, **self.settings, **self.by_messages.get(messages, {})}


def _tuned(**tuner: Any) -> Method:
    """The int4 program; what ``tuner`` leaves out is as an app gets it."""
    return Method("int4", "start-int4", {"tuner": tuner})


_LORA: dict[str, Any] = {"lr": 5e-4, "rank": 8, "alpha": 16}
"""Rate and rank of SST-2 in the paper's table 9, as in ``bench quality``."""
_EPOCHS = {50: {"epochs": 3}, 200: {"epochs": 1}, 1000: {"epochs": 1}}
"""Every message is seen once, by LoRA as by the text head; few ones may be seen again."""

METHODS: dict[str, Method] = {
    "start-int4": Method("int4", "start-int4", learns=False),
    "start-fp32": Method("lora", "start-fp32", learns=False),
    "lora": Method("lora", "start-fp32", _LORA, _EPOCHS),
    "text-head": _tuned(),
    "text-head-alone": _tuned(remember=False),
    "head-only": _tuned(terms=False),
    "head-only-alone": _tuned(terms=False, remember=False),
    "per-example": _tuned(estimator="per-example", steps=100, eval_every=50),
}
