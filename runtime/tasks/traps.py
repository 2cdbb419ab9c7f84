"""What spoils a result without being wrong: a warning each, with what to write instead.

The traps of a prompt are seen where a task is built, those of single rows where they are encoded.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import SeedtuneWarning

if TYPE_CHECKING:
    from .task import Encoded, Task


def warn(message: str) -> None:
    """Warn in one line. Python shows it once, the command line as ``warning: ...``."""
    warnings.warn(message, SeedtuneWarning, stacklevel=3)


def warn_of_examples(
    task: "Task", train: Sequence["Encoded"], held_out: Sequence["Encoded"]
) -> None:
    """Warn where all training examples have one label, or where held-out ones are among them."""
    golds = {example.gold for example in train}
    if len(task.labels) > 1 and len(golds) == 1:
        label = task.labels[golds.pop()]
        warn(
            f"all {len(train)} training rows have the label {label[:40]!r}: a run learns to say it "
            "always; add rows with the other labels"
        )
    trained = {example.tokens.tobytes() for example in train}
    both = sum(example.tokens.tobytes() in trained for example in held_out)
    if both:
        warn(
            f"{both} of {len(held_out)} held-out rows are training rows, too, and say nothing of "
            "new ones; take them out of one of the two"
        )
