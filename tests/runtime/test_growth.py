"""What a step costs does not grow with the run behind it. Operations are counted, not seconds."""

import hashlib
import math
import random
from dataclasses import replace

import pytest
from journal_bytes import header
from safetensors.numpy import load, save
from seedtune.runtime.errors import JournalError
from seedtune.runtime.journal.file import write_journal
from seedtune.runtime.journal.format import Change, Evaluation, Record, Reference, Step
from seedtune.runtime.journal.history import Evaluated, History
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.state import replay
from tiny_run import START, run


def history(*, higher_is_better=True):
    metric = {"name": "m", "higher_is_better": higher_is_better}
    return History(header(settings={"steps": 40, "eval_every": 4}, metric=metric), "journal.bin")


class Counted(list[Evaluated]):
    """A list that knows how many of its items were looked at."""

    looks = 0

    def __iter__(self):
        for item in super().__iter__():
            self.looks += 1
            yield item


def test_what_each_step_asks_for_looks_at_no_earlier_evaluation():
    found = history()
    found.evaluations = Counted()
    for number in range(2000):
        found.add(Evaluation(1.0 / (number + 1), number % 7))
        assert found.best is not None and found.loss_limit is not None
        found.add(Step((1.0,)))
    assert found.evaluations.looks == 0


def expected(found):
    """Best and loss limit from all evaluations, as they are defined."""
    its, sign = found.settings, -1.0 if found.higher_is_better else 1.0
    sound = [e for e in found.evaluations if math.isfinite(e.loss) and math.isfinite(e.metric)]

    every = its.eval_every or its.steps
    losses = [e.loss for e in found.evaluations if e.step % every == 0 and math.isfinite(e.loss)]
    losses = losses or ([found.reference] if found.reference is not None else [])
    limit = losses[-1] + its.loss_jump * max(abs(losses[0]), 1e-3) if losses else None
    return min(sound, key=lambda e: (sign * e.metric, e.loss), default=None), limit


@pytest.mark.parametrize("seed", range(20))
def test_best_and_loss_limit_are_those_of_all_evaluations(seed):
    rng = random.Random(seed)
    found = history(higher_is_better=bool(seed % 2))
    numbers = (0.0, 0.1, 0.5, 0.5, 1.0, -2.0, math.nan, math.inf)
    for _ in range(300):
        record: Record = rng.choice(
            [
                Step((1.0,)),
                Step((1.0,)),
                Evaluation(rng.choice(numbers), rng.choice(numbers)),
                Evaluation(rng.choice(numbers), rng.choice(numbers)),
                Reference(0.7),
                Change("eval_every", rng.choice((0, 1, 4))),
                Change("steps", rng.choice((40, 60))),
                Change("loss_jump", rng.choice((1.0, 2.0))),
            ]
        )
        if isinstance(record, Change) and rng.random() < 0.7:  # seldom, or little adds up
            continue
        found.add(record)
        assert (found.best, found.loss_limit) == expected(found)


def test_a_snapshot_with_another_state_is_refused(tmp_path):
    """Its hash says that it is the journal's, as whoever writes both can make it."""
    settings = {"estimator": "per-example", "steps": 90, "batch_size": 8, "eps": 0.01}
    run(tmp_path, settings=settings)
    journal = compact(tmp_path, START)
    held = journal.header.snapshot
    assert held is not None
    tensors = load((tmp_path / held["file"]).read_bytes())
    data = save({n: t[None] if n.startswith("state.") else t for n, t in tensors.items()})
    replaced = {**held, "sha256": hashlib.sha256(data).hexdigest()}
    write_journal(
        journal.path,
        replace(journal.header, snapshot=replaced),
        [placed.record for placed in journal.records],
    )
    (tmp_path / held["file"]).write_bytes(data)
    with pytest.raises(JournalError, match=r"journal\.bin: the estimator's state in its snapshot"):
        replay(tmp_path, START)
