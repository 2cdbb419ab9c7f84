"""Replay and the operations on journals: same bits, nothing lost, damage never silent."""

import itertools
import os
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from every_operation import check_every_operation
from fakes import LostTask, fake_examples, fake_start
from faults import damaged
from journal_bytes import header
from seedtune.runtime.errors import JournalError, SeedtuneError
from seedtune.runtime.journal.file import JournalWriter, read_journal
from seedtune.runtime.journal.format import Evaluation, Step
from seedtune.runtime.journal.operations import branch, rewind, share
from seedtune.runtime.journal.run_folder import JOURNAL_FILE
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring.values import Values
from tiny_run import CARRIED, suited, tuner

K = 64
START = fake_start(K)
SETTINGS = {
    "seed": 5,
    "steps": 150,
    "batch_size": 8,
    "lr": 0.3,
    "eps": 0.01,
    "eval_every": 25,
    "estimator": "two-point",
}
TRAIN, HELD_OUT = fake_examples(64), fake_examples(32, seed=1)


def go_on(folder, *, until=None, settings=SETTINGS, **more):
    """Start or resume a run; stop after ``until`` steps or at its end."""
    with tuner(folder, settings=settings, train=TRAIN, eval_examples=HELD_OUT, **more) as live:
        for report in live:
            if report.step == until:
                break
        return live.values.sha256


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run and its values' hash."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, go_on(folder)


@pytest.fixture(scope="module")
def hashes(done):
    """Hash of the values after each step."""
    return [replay(done[0], START, until=step).sha256 for step in range(151)]


@pytest.mark.parametrize("estimator", [name for name in CARRIED if name != "text-head"])
def test_every_operation_keeps_values_and_state(tmp_path, estimator):
    settings, train = suited(estimator, SETTINGS, lr=0.05, groups=3), TRAIN
    if estimator == "readout":  # one pass at most
        settings, train = settings | {"batch_size": 1}, fake_examples(150)

    def made(folder, settings):
        return tuner(folder, settings=settings, train=train)

    check_every_operation(tmp_path, made, START, settings)


def test_steps_out_of_reach_are_refused(tmp_path, done):
    for step, why in ((-1, "starts at step 0"), (151, "ends at step 150")):
        with pytest.raises(JournalError, match=f"step {step} cannot be reached; it {why}"):
            replay(done[0], START, until=step)
    branch(done[0], tmp_path / "b")
    with pytest.raises(JournalError, match="step 151 cannot be reached"):
        rewind(tmp_path / "b", 151)
    with pytest.raises(JournalError, match="step 151 cannot be reached"):
        branch(done[0], tmp_path / "c", step=151)


@pytest.mark.parametrize("step", [0, 1, 25, 70, 149, 150])
def test_rewind_and_branch_reach_the_values_of_that_step(tmp_path, done, hashes, step):
    folder, live = done
    branch(folder, tmp_path / "branch", step=step)
    branch(folder, tmp_path / "whole")
    rewind(tmp_path / "whole", step)
    for name in ("branch", "whole"):
        found = replay(tmp_path / name, START)
        assert found.history.steps == step and found.sha256 == hashes[step]
        assert found.history.evaluations == [
            e for e in replay(folder, START).history.evaluations if e.step <= step
        ]
        assert go_on(tmp_path / name) == live


def test_a_branch_can_go_its_own_way(tmp_path, done, hashes):
    branch(done[0], tmp_path / "b", step=60)
    other = SETTINGS | {"lr": 0.1, "schedule": "linear", "eps": 0.02}
    final = go_on(tmp_path / "b", settings=other, allow_changes=True)
    assert final != done[1] and replay(tmp_path / "b", START).sha256 == final
    assert replay(tmp_path / "b", START, until=60).sha256 == hashes[60]
    with pytest.raises(JournalError, match="there is a run already"):
        branch(done[0], tmp_path / "b", step=60)


def test_rewind_drops_a_change_made_there(tmp_path, done):
    branch(done[0], tmp_path / "b", step=60)
    other = SETTINGS | {"lr": 0.1}
    go_on(tmp_path / "b", until=80, settings=other, allow_changes=True)
    rewind(tmp_path / "b", 60)
    assert go_on(tmp_path / "b") == done[1]


def test_rewind_needs_the_run_for_itself(tmp_path, done):
    branch(done[0], tmp_path / "b", step=60)
    writer, _ = JournalWriter.open(tmp_path / "b")
    for operation in (lambda: rewind(tmp_path / "b", 3), lambda: compact(tmp_path / "b", START)):
        with pytest.raises(JournalError, match="another writer"):
            operation()
    writer.close()
    rewind(tmp_path / "b", 3)


def test_rewind_and_branch_mend_a_journal_damaged_behind_the_step(tmp_path, done, hashes):
    branch(done[0], tmp_path / "b")
    journal = read_journal(tmp_path / "b")
    steps = [p for p in journal.records if p.is_step]
    data = bytearray((tmp_path / "b" / JOURNAL_FILE).read_bytes())
    data[steps[99].end - 3] ^= 1
    (tmp_path / "b" / JOURNAL_FILE).write_bytes(data)
    with pytest.raises(
        JournalError, match=f"damaged at byte {steps[99].end - 4} .*step is 99: .*--to-last-good"
    ):
        replay(tmp_path / "b", START)
    branch(tmp_path / "b", tmp_path / "c", step=98)
    assert replay(tmp_path / "c", START).sha256 == hashes[98]
    branch(tmp_path / "b", tmp_path / "d", step=99)  # the last good step, as the message says
    assert replay(tmp_path / "d", START).sha256 == hashes[99]
    shutil.copytree(tmp_path / "b", tmp_path / "e")
    rewind(tmp_path / "e", None)
    assert replay(tmp_path / "e", START).sha256 == hashes[99]
    assert go_on(tmp_path / "e") == done[1]
    rewind(tmp_path / "b", 98)
    assert replay(tmp_path / "b", START).sha256 == hashes[98]
    assert go_on(tmp_path / "b") == done[1]


def test_compact_keeps_values_best_and_future(tmp_path, done, hashes):
    branch(done[0], tmp_path / "b", step=140)
    before = replay(tmp_path / "b", START)
    size = (tmp_path / "b" / JOURNAL_FILE).stat().st_size
    journal = compact(tmp_path / "b", START)
    assert journal.header.first_step == 140 - 64 and journal.end < size
    after = replay(tmp_path / "b", START)
    assert after.sha256 == before.sha256 == hashes[140]
    assert after.best == before.best and after.best_values.sha256 == before.best_values.sha256
    assert replay(tmp_path / "b", START, until=100).sha256 == hashes[100]
    with pytest.raises(JournalError, match="starts at step 76"):
        rewind(tmp_path / "b", 75)
    with pytest.raises(JournalError, match="was compacted"):
        share(tmp_path / "b", tmp_path / "x.journal", START)
    branch(tmp_path / "b", tmp_path / "c", step=80)
    assert go_on(tmp_path / "c") == go_on(tmp_path / "b") == done[1]
    compact(tmp_path / "b", START)  # again, from snapshot to snapshot
    assert [p.name for p in (tmp_path / "b").glob("snapshot*")] == ["snapshot-86.safetensors"]
    again = replay(tmp_path / "b", START)
    whole = replay(done[0], START)
    assert again.sha256 == done[1] and again.best == whole.best
    assert again.best_values.sha256 == whole.best_values.sha256


def test_compact_keeps_a_best_step_that_lies_in_the_snapshot(tmp_path):
    asked = {"settings": SETTINGS, "train": TRAIN, "eval_examples": HELD_OUT}
    with tuner(tmp_path, task=LostTask(), **asked) as live:
        list(live)
        best = live.tuned()
    assert 0 < best.step <= 50
    assert compact(tmp_path, START).header.first_step > best.step
    found = replay(tmp_path, START)
    assert found.best.step == best.step and found.best_values.sha256 == best.values.sha256


def test_compact_leaves_short_runs_alone_and_guards_its_snapshot(tmp_path, done):
    branch(done[0], tmp_path / "b", step=60)
    before = (tmp_path / "b" / JOURNAL_FILE).read_bytes()
    compact(tmp_path / "b", START)
    assert (tmp_path / "b" / JOURNAL_FILE).read_bytes() == before
    branch(done[0], tmp_path / "c")
    compact(tmp_path / "c", START)
    (snapshot,) = (tmp_path / "c").glob("snapshot*")
    data = bytearray(snapshot.read_bytes())
    data[-1] ^= 1
    snapshot.write_bytes(data)
    with pytest.raises(JournalError, match=r"snapshot-86.*is not the snapshot"):
        replay(tmp_path / "c", START)
    snapshot.unlink()
    with pytest.raises(JournalError, match=r"snapshot-86.*cannot be read"):
        replay(tmp_path / "c", START)


def test_every_operation_on_damage_fails_with_a_seedtune_error_only(tmp_path, done):
    data = (done[0] / JOURNAL_FILE).read_bytes()
    rng = random.Random(1)
    for number in range(300):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / JOURNAL_FILE).write_bytes(damaged(data, rng)[1])
        operations = [
            lambda: replay(folder, START),  # noqa: B023
            lambda: branch(folder, folder / "branch"),  # noqa: B023
            lambda: share(folder, folder / "sent", START),  # noqa: B023
            lambda: compact(folder, START),  # noqa: B023
            lambda: rewind(folder, 20),  # noqa: B023
        ]
        for operation in operations:
            try:
                operation()
            except SeedtuneError as error:
                assert "\n" not in str(error)


def test_twenty_thousand_steps_take_little_and_replay(tmp_path):
    entries, steps = 1_000, 20_000
    start = fake_start(entries)
    head = header(
        bundle_sha256=start.bundle_sha256,
        values_sha256=Values(start.values).sha256,
        entries=entries,
        settings={"steps": steps, "eval_every": 100, "schedule": "linear"},
    )
    scalars = np.random.default_rng(0).normal(0, 20, steps).astype(np.float16).tolist()
    records = itertools.chain.from_iterable(
        (*((Evaluation(0.5, 0.5),) if step % 100 == 0 else ()), Step((scalar,)))
        for step, scalar in enumerate(scalars)
    )
    JournalWriter.create(tmp_path, head, records=records).close()
    assert (tmp_path / JOURNAL_FILE).stat().st_size <= 100_000
    assert replay(tmp_path, start).history.steps == steps


@pytest.mark.parametrize(("ticks", "syncs"), [(64, 0), (4, 6), (1, 20)])
def test_records_are_synced_in_time(tmp_path, monkeypatch, ticks, syncs):
    """Before the next one would come too late, if it takes as long as the last."""
    go_on(tmp_path, until=1)
    now, calls = [0.0], []
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(monotonic=lambda: now[0])
        patch.setattr("seedtune.runtime.journal.file.time", clock)
        patch.setattr("seedtune.runtime.journal.file.SYNC_SECONDS", ticks / 64)
        writer, _ = JournalWriter.open(tmp_path)
        patch.setattr(os, "fsync", calls.append)
        for number in range(20):
            now[0] += 1 / 64
            writer.append(Step((float(number),)))
            writer.sync_if_due()
    writer.close()
    assert len(calls) == syncs
