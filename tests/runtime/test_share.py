"""Shared journals: whole or refused, and nothing in them that need not be."""

import numpy as np
import pytest
from fakes import FakeEngine, FakeTask, fake_examples, fake_start
from seedtune.runtime.errors import JournalError
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.journal.file import read_journal, write_journal
from seedtune.runtime.journal.format import End, Note, Step
from seedtune.runtime.journal.operations import receive, share
from seedtune.runtime.journal.run_folder import JOURNAL_FILE
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.tuning.tuner import Tuner
from tiny_run import rates

START = fake_start(8)
SETTINGS = {
    "seed": 5,
    "steps": 6,
    "batch_size": 8,
    "lr": 0.3,
    "eps": 0.01,
    "eval_every": 3,
    "estimator": "two-point",
}


def tune(folder, *, steps = 6, note = None,
         settings = SETTINGS,
         allow_changes = False, examples = 32):  # fmt: skip
    """A session up to ``steps`` steps; the hash of its values."""
    with Tuner(
        FakeEngine(8),
        START,
        FakeTask(),
        fake_examples(examples),
        folder=folder,
        settings=(settings | {"steps": steps}),
        eval_examples=fake_examples(16, seed=1),
        allow_changes=allow_changes,
    ) as live:
        if note is not None:
            live._run.commit(Note(note))
        list(live)
        return live.values.sha256


@pytest.fixture
def run(tmp_path):
    """A run of two sessions, so that an end stands in its middle, with notes."""
    tune(tmp_path / "run", note="for Ann: my pin is 1234")
    tune(tmp_path / "run", steps=12)
    return tmp_path / "run"


def records(path):
    return [placed.record for placed in read_journal(path).records]


def rewrite(path, kept):
    write_journal(path, read_journal(path).header, kept)


def test_every_cut_of_a_shared_file_is_refused(tmp_path, run):
    sent, target = tmp_path / "sent.journal", tmp_path / "received"
    # Shared twice: the closing record of the first time must not close a cut of the second.
    share(run, sent, START)
    receive(sent, tmp_path / "again", START)
    tune(tmp_path / "again", steps=15)
    share(tmp_path / "again", sent, START)
    data = sent.read_bytes()
    for length in range(len(data)):
        sent.write_bytes(data[:length])
        with pytest.raises(JournalError):
            receive(sent, target, START)
        assert not target.exists()
    sent.write_bytes(data)
    assert receive(sent, target, START).sha256 == replay(tmp_path / "again", START).sha256
    assert len(replay(target, START).history.ends) == 4


def test_the_count_of_the_closing_record_must_hold(tmp_path, run):
    sent = tmp_path / "sent.journal"
    share(run, sent, START)
    *before, closing = records(sent)
    assert isinstance(closing, End) and closing.reason == f"shared, {len(before)} records before"
    rewrite(sent, [*before, closing._replace(reason="shared, 99 records before")])
    with pytest.raises(JournalError, match=rf"has {len(before)} records, its sender wrote 99"):
        receive(sent, tmp_path / "received", START)
    rewrite(sent, [*before, closing._replace(digest=bytes(16))])
    with pytest.raises(JournalError, match="values after step 12 are not those"):
        receive(sent, tmp_path / "received", START)


def test_a_journal_that_was_not_shared_is_not_received(tmp_path, run):
    """A file that was cut at the end of a session looks the same."""
    sent = tmp_path / "sent.journal"
    sent.write_bytes((run / JOURNAL_FILE).read_bytes())
    with pytest.raises(JournalError, match="has no closing record: it was cut short on its way"):
        receive(sent, tmp_path / "received", START)


def test_a_run_s_own_journal_is_left_as_it_is(tmp_path, run):
    before = (run / JOURNAL_FILE).read_bytes()
    share(run, tmp_path / "sent.journal", START)
    assert (run / JOURNAL_FILE).read_bytes() == before


def test_free_text_is_left_out(tmp_path, run):
    sent = tmp_path / "sent.journal"
    share(run, sent, START)
    assert b"1234" not in sent.read_bytes() and b"steps done" not in sent.read_bytes()
    receive(sent, tmp_path / "received", START)
    assert tune(tmp_path / "received", steps=15) == tune(run, steps=15)


@pytest.mark.parametrize("changed", [False, True])
def test_batches_of_one_example_are_not_shared(tmp_path, changed):
    run, one = tmp_path / "run", (SETTINGS | {"batch_size": 1})
    if changed:
        tune(run)
        tune(run, steps=8, settings=one, allow_changes=True)
        tune(run, steps=9, allow_changes=True)
    else:
        tune(run, settings=one)
    with pytest.raises(
        JournalError, match=r"batches of a single example \(--batch-size 1\).*inste"
    ):
        share(run, tmp_path / "sent.journal", START)
    assert not (tmp_path / "sent.journal").exists()


def test_a_run_on_one_example_is_not_shared(tmp_path):
    tune(tmp_path / "run", examples=1)
    with pytest.raises(JournalError, match=r"was trained on a single example, so that"):
        share(tmp_path / "run", tmp_path / "sent.journal", START)
    assert not (tmp_path / "sent.journal").exists()


APART = np.array([0.75, -0.25, -0.25, -0.25])
"""Of the losses of a batch of four: their mean is 0, that of no part is."""


def _scalars(folder, name, monkeypatch, *, apart):
    """What a run journals; with ``apart``, each probe moves the losses of a batch's examples apart,
    the further the later it comes, and leaves the batch's mean where it was."""
    real, cut = Look.losses, Look.part

    def losses(self, rows):
        found = real(self, rows)
        numbers = getattr(self, "numbers", np.arange(found.shape[1]))
        return found + apart * np.arange(1, len(rows) + 1)[:, None] * APART[numbers]

    def part(self, numbers):
        found = cut(self, numbers)
        found.numbers = np.asarray(numbers)
        return found

    asked = {"steps": 3, "batch_size": 4, "eval_every": 0, "loss_jump": 1e9}
    settings = {**asked, "estimator": name, **rates(name)}
    with monkeypatch.context() as patched:
        patched.setattr(Look, "losses", losses)
        patched.setattr(Look, "part", part)
        examples = fake_examples(32)
        with Tuner(
            FakeEngine(8), START, FakeTask(), examples, folder=folder, settings=settings
        ) as live:
            list(live)
    return [record.scalars for record in records(folder) if isinstance(record, Step)]


@pytest.mark.parametrize("name", [n for n, f in ESTIMATORS.items() if not f.holds_examples])
def test_who_does_not_say_so_journals_batch_means_alone(tmp_path, monkeypatch, name):
    kept = [
        _scalars(tmp_path / str(apart), name, monkeypatch, apart=apart) for apart in (False, True)
    ]
    assert len(kept[0]) == 3
    assert np.allclose(kept[0], kept[1], rtol=2e-3)  # an ulp of float16


def test_numbers_of_parts_of_a_batch_would_be_seen(tmp_path, monkeypatch):
    """The check itself."""
    kept = [
        _scalars(tmp_path / str(apart), "per-example", monkeypatch, apart=apart)
        for apart in (False, True)
    ]
    assert not np.allclose(kept[0], kept[1], rtol=2e-3)
