"""The methods of ``bench senders``, with the settings that they are compared at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LENGTH = 128
"""Tokens of a row at most: the bound of the exported program."""


@dataclass(frozen=True)
class Method:
    """``run(person, settings, progress)`` of ``module`` gives ``test`` and ``other``, and what else
    is of note."""

    module: str
    start: str
    """The method that is its model, untouched."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Part of every cell's key."""
    by_messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Further ones for so many messages."""
    bundle: bool = False
    """Whether it runs the exported program."""
    learns: bool = True

    def settings_for(self, messages: int) -> dict[str, Any]:
        return {"seed": 0, **self.settings, **self.by_messages.get(messages, {})}


_LORA: dict[str, Any] = {"lr": 5e-4, "rank": 8, "alpha": 16}
"""Rate and rank of SST-2 in the paper's table 9, as in ``bench quality``."""
_EPOCHS = {50: {"epochs": 3}, 200: {"epochs": 1}, 1000: {"epochs": 1}}
"""Every message is seen once, by LoRA as by the text head; few ones may be seen again."""

METHODS: dict[str, Method] = {
    "start-int4": Method("memory", "start-int4", bundle=True, learns=False),
    "start-fp32": Method("lora", "start-fp32", {"weights": "float32"}, learns=False),
    "start-nf4": Method("lora", "start-nf4", {"weights": "nf4"}, learns=False),
    "ngram": Method("memory", "start-int4", {"memory": "ngram"}, bundle=True),
    "knn": Method("memory", "start-int4", {"memory": "knn"}, bundle=True),
    "lora": Method("lora", "start-fp32", {**_LORA, "weights": "float32"}, _EPOCHS),
    "prompt": Method("prompt", "start-fp32", {"rooms": [512, 2048]}),
    "lora-nf4": Method("lora", "start-nf4", {**_LORA, "weights": "nf4"}, _EPOCHS),
    # All of it left to the defaults, the estimator too: what an app gets.
    "text-head": Method("tuned", "start-int4", {"tuner": {}}, bundle=True),
    "text-head-alone": Method("tuned", "start-int4", {"tuner": {"remember": False}}, bundle=True),
    "per-example": Method(
        "tuned",
        "start-int4",
        {"tuner": {"estimator": "per-example", "steps": 100, "eval_every": 50}},
        bundle=True,
    ),
}
