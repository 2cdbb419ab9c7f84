"""Held-out rows in two parts: some choose the step that ships, the others say how good it is.

The best of many evaluations on the same rows is better there than anywhere else. So the rows that
``tune`` reports on have chosen nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .inputs import ChosenTask

if TYPE_CHECKING:
    from seedtune.runtime.tasks import Encoded, Task
    from seedtune.runtime.tasks.rows import Row


@dataclass(frozen=True)
class HeldOut:
    """Examples, and the rows that they were made of."""

    choosing: list[Encoded]
    """They decide the best step."""
    judging: list[Encoded]
    """They decide nothing."""
    rows: list[Row]
    """The rows that ``judging`` was made from."""


def held_out_rows(
    run: Path,
    chosen: ChosenTask,
    task: Task,
    data: Path | None,
    test: Path | None,
) -> HeldOut:
    """The rows of ``--data`` (or the named task's own rows) and ``--test``; empty without any.

    Raises:
        DataError: a row is unusable.
    """
    from seedtune.runtime.tasks import encode_rows

    rows: list[Row] = []
    if data is not None or chosen.data is not None:
        rows = chosen.rows("test", data)
    examples = encode_rows(task, rows) if rows else []
    if test is None:
        return in_two(run, rows, examples)
    tested = chosen.rows("test", test)
    return HeldOut(examples, encode_rows(task, tested), tested)


def warn_of_held_out(train: Sequence[Encoded], held_out: HeldOut) -> None:
    """Warn where judging rows are among those that taught or chose."""
    from seedtune.runtime.errors import warn

    for others, what in ((train, "training rows"), (held_out.choosing, "rows that choose")):
        known = {example.tokens.tobytes() for example in others}
        both = sum(example.tokens.tobytes() in known for example in held_out.judging)
        if both:
            warn(
                f"{both} of the {len(held_out.judging)} rows that judge are {what}, too, and say "
                "nothing of new ones; take them out of one of the two"
            )


def in_two(run: Path, rows: Sequence[Row], examples: Sequence[Encoded]) -> HeldOut:
    """Every other row of each label, so that both parts have the labels in like shares.

    A run that chose by all of them, as one from Python does, goes on to.
    """
    from seedtune.runtime.tuning.resume import examples_sha256

    if len(examples) < 2 or _chosen_by(run) == examples_sha256(examples):
        return HeldOut(list(examples), [], [])
    by_label = sorted(range(len(examples)), key=lambda number: examples[number].gold)
    choosing, judging = sorted(by_label[::2]), sorted(by_label[1::2])
    return HeldOut(
        [examples[number] for number in choosing],
        [examples[number] for number in judging],
        [rows[number] for number in judging],
    )


def _chosen_by(run: Path) -> str | None:
    """Hash of the held-out examples of the run in a folder; None where it has none."""
    from seedtune.runtime.journal.file import read_journal
    from seedtune.runtime.journal.run_folder import JOURNAL_FILE
    from seedtune.runtime.journal.state import history_of

    if not (run / JOURNAL_FILE).exists():
        return None
    return history_of(read_journal(run)).data["eval_sha256"]
