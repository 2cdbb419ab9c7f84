"""The device side: open a bundle, tune its sensitive values with forward passes, keep a journal.

::

    from seedtune.runtime import open_model

    model = open_model("model.seedtune")
    with model.tuner("app_run", train="train.jsonl", held_out="held_out.jsonl") as tuner:
        for report in tuner:
            print(report)
        tuned = tuner.tuned()
    model.load(tuned)
    print(model.predict({"text": "a gripping, funny film"}).answer)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import telemetry
from .errors import (
    BundleError,
    DataError,
    EngineError,
    JournalError,
    SeedtuneError,
    SeedtuneWarning,
    TuningError,
)

telemetry.switch_off()

if TYPE_CHECKING:
    from .model import Model, open_model
    from .scoring.evaluation import Evaluation
    from .settings import Settings
    from .tasks import Prediction
    from .tuning.budget import Budget, Control
    from .tuning.tuner import StepReport, Tuned, Tuner

__all__ = [
    "Budget",
    "BundleError",
    "Control",
    "DataError",
    "EngineError",
    "Evaluation",
    "JournalError",
    "Model",
    "Prediction",
    "SeedtuneError",
    "SeedtuneWarning",
    "Settings",
    "StepReport",
    "Tuned",
    "Tuner",
    "TuningError",
    "open_model",
]
_HOMES = {
    "Budget": "tuning.budget",
    "Control": "tuning.budget",
    "Evaluation": "scoring.evaluation",
    "Model": "model",
    "Prediction": "tasks",
    "Settings": "settings",
    "StepReport": "tuning.tuner",
    "Tuned": "tuning.tuner",
    "Tuner": "tuning.tuner",
    "open_model": "model",
}


def __getattr__(name: str) -> Any:
    """Load the rest when it is asked for: ``seedtune --help`` needs the errors alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
