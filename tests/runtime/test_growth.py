"""What a step costs does not grow with the run behind it. Operations are counted, not seconds."""

import hashlib
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from fakes import fake_basis
from safetensors.numpy import load, save
from seedtune.runtime.bundle.exported_values import values_sha256
from seedtune.runtime.errors import JournalError
from seedtune.runtime.estimators import gauss_newton, with_defaults
from seedtune.runtime.estimators.gauss_newton import GaussNewton
from seedtune.runtime.journal.file import write_journal
from seedtune.runtime.journal.format import Change, Evaluation, Header, Record, Reference, Step
from seedtune.runtime.journal.history import Evaluated, History
from seedtune.runtime.journal.operations import branch
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.settings import Settings
from tiny_run import START, run, tuner

SETTINGS = with_defaults(Settings(steps=40, eval_every=4, eps=0.01, estimator="two-point"))


def history(*, higher_is_better: bool = True) -> History:
    header = Header(
        bundle_sha256="b" * 64,
        values_sha256="c" * 64,
        entries=8,
        scalar_count=1,
        settings=SETTINGS.to_dict(),
        train_sha256="d" * 64,
        eval_sha256=None,
        metric={"name": "m", "higher_is_better": higher_is_better},
    )
    return History(header, "journal.bin")


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


def expected(found: History) -> tuple[Evaluated | None, float | None]:
    """Best and loss limit from all evaluations, as they are defined."""
    its, sign = found.settings, -1.0 if found.higher_is_better else 1.0
    sound = [e for e in found.evaluations if math.isfinite(e.loss) and math.isfinite(e.metric)]

    def rank(e: Evaluated) -> tuple[float, float]:
        return (sign * e.metric, e.loss) if its.best_by == "metric" else (e.loss, sign * e.metric)

    every = its.eval_every or its.steps
    losses = [e.loss for e in found.evaluations if e.step % every == 0 and math.isfinite(e.loss)]
    losses = losses or ([found.reference] if found.reference is not None else [])
    limit = losses[-1] + its.loss_jump * max(abs(losses[0]), 1e-3) if losses else None
    return min(sound, key=rank, default=None), limit


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
                Change("best_by", rng.choice(("metric", "loss"))),
                Change("eval_every", rng.choice((0, 1, 4))),
                Change("steps", rng.choice((40, 60))),
                Change("loss_jump", rng.choice((1.0, 2.0))),
            ]
        )
        if isinstance(record, Change) and rng.random() < 0.7:  # seldom, or little adds up
            continue
        found.add(record)
        assert (found.best, found.loss_limit) == expected(found)


def test_gauss_newton_keeps_a_bounded_number_of_examples(monkeypatch):
    monkeypatch.setattr(gauss_newton, "MEMORY", 100)
    seen = []
    solve = gauss_newton.solve
    monkeypatch.setattr(
        gauss_newton, "solve", lambda rows, start: (seen.append(rows), solve(rows, start))[1]
    )
    estimator = GaussNewton(fake_basis(32, 4), 4, 16)
    values, rng = np.zeros(32, np.float32), np.random.default_rng(0)
    for step in range(12):
        scalars = estimator.scalars(rng.uniform(0.1, 2, (5, 16)), eps=0.35)
        estimator.apply(values, scalars, seed=0, step=step, lr=1.0)
        # The next step is solved from the examples that this one kept, the last ones.
        assert (estimator.state["rows"] == seen[-1]).all()
    assert [len(rows) for rows in seen] == [min(16 * (n + 1), 100) for n in range(12)]


def test_a_gauss_newton_run_beyond_its_memory_resumes_and_replays_to_the_same_bits(
    tmp_path, monkeypatch
):
    its = Settings(seed=3, steps=80, batch_size=8, directions=4, estimator="gauss-newton")
    monkeypatch.setattr(gauss_newton, "MEMORY", 100)
    whole = run(tmp_path / "whole", settings=its)
    with tuner(tmp_path / "parts", settings=its) as live:
        for report in live:
            if report.step == 71:
                break
    branch(tmp_path / "parts", tmp_path / "compacted")
    compact(tmp_path / "compacted", START)
    for name in ("parts", "compacted"):
        assert run(tmp_path / name, settings=None) == whole
    monkeypatch.setattr(gauss_newton, "MEMORY", 10**6)  # as before there was a bound
    assert values_sha256(replay(tmp_path / "whole", START).values) == whole


@pytest.mark.parametrize("estimator", ["momentum", "gauss-newton", "per-example"])
def test_a_snapshot_with_another_state_is_refused(tmp_path, estimator):
    """Its hash says that it is the journal's, as whoever writes both can make it."""
    rates = {"lr": 0.3} if estimator == "momentum" else {}
    settings = Settings(estimator=estimator, steps=90, batch_size=8, eps=0.01, **rates)
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
