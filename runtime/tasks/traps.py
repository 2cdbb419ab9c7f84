"""What spoils a run without being wrong in any one row."""

from collections.abc import Sequence

from ..errors import warn
from .task import Encoded, Task


def warn_of_examples(task: Task, train: Sequence[Encoded], held_out: Sequence[Encoded]) -> None:
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
