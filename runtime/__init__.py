"""The device side: open a bundle, tune its sensitive values with forward passes, keep a journal.

::

    from seedtune.runtime import open_model

    model = open_model("model.seedtune")
    with model.tuner("run", train="train.jsonl", held_out="held_out.jsonl") as tuner:
        for report in tuner:
            print(report)
        tuned = tuner.tuned()
    model.load(tuned)
    print(model.predict({"text": "a gripping, funny film"}).answer)
"""

from typing import TYPE_CHECKING, Any

from . import errors, telemetry
from .errors import SeedtuneError, SeedtuneWarning

telemetry.switch_off()

if TYPE_CHECKING:
    from .model import Model, open_model
    from .settings import Settings

__all__ = ["Model", "SeedtuneError", "SeedtuneWarning", "Settings", "errors", "open_model"]


def __getattr__(name: str) -> Any:
    """Load the rest when it is asked for: ``seedtune --help`` needs the errors alone."""
    if name == "Settings":
        from .settings import Settings

        return Settings
    if name in ("Model", "open_model"):
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
