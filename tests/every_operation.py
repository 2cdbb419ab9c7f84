"""What holds of a run of any estimator, whatever is done with its journal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seedtune.runtime.errors import JournalError
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import branch, receive, rewind, share
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay
from seedtune.runtime.tuning.tuner import Tuner


def check_every_operation(
    folder: Path, tuner: Callable[..., Tuner], start: Start, settings: dict[str, Any]
) -> None:
    """Interrupted, resumed, replayed, branched, rewound, shared (or refused) and compacted, a run
    ends on the same values, and has the estimator's state of an uninterrupted one.

    Args:
        tuner: of a folder and ``settings``, by that name.
        settings: of 100 steps or more.
    """

    def go_on(name: str, until: int | None = None, settings: dict[str, Any] | None = None) -> str:
        with tuner(folder / name, settings=settings) as live:
            for report in live:
                if report.step == until:
                    break
            return live.values.sha256

    whole, last = folder / "whole", go_on("whole", settings=settings)
    assert replay(whole, start).sha256 == last
    for until in (1, 2, 33, 90):
        assert go_on("resumed", until, settings) == replay(folder / "resumed", start).sha256
    assert go_on("resumed") == last
    ours, theirs = read_journal(folder / "resumed"), read_journal(whole)
    assert [each.record for each in ours.records] == [each.record for each in theirs.records]
    wanted = replay(whole, start, until=97)
    branch(whole, folder / "branch", step=99)
    names = ["branch"]
    if wanted.history.spec.holds_examples:
        with pytest.raises(JournalError, match=r"single examples.*share the tuned values instead"):
            share(whole, folder / "sent", start)
        assert not (folder / "sent").exists()
    else:
        share(whole, folder / "sent", start)
        assert receive(folder / "sent", folder / "received", start).sha256 == last
        names.append("received")
    for name in names:
        rewind(folder / name, 97)
        assert compact(folder / name, start).header.first_step == 97 - 64
        found = replay(folder / name, start)
        assert found.sha256 == wanted.sha256 and found.best == wanted.best
        assert found.best_values.sha256 == wanted.best_values.sha256
        for part, numbers in wanted.estimator.state.items():
            np.testing.assert_array_equal(found.estimator.state[part], numbers)
        branch(folder / name, folder / f"{name}2", step=40)
        assert go_on(f"{name}2") == go_on(name) == last
        compact(folder / name, start)  # from snapshot to snapshot
        assert replay(folder / name, start).sha256 == last
