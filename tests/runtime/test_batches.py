"""Batches: pure in (seed, step), every example equally often, lengths close together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from seedtune.runtime.tuning.batches import batch_indices

LENGTHS = np.random.default_rng(0).integers(3, 100, size=1003)


def epoch(number, *, seed=5, size=8):
    steps = len(LENGTHS) // size
    return [
        batch_indices(step, seed=seed, lengths=LENGTHS, batch_size=size).tolist()
        for step in range(number * steps, (number + 1) * steps)
    ]


@given(
    step=st.integers(0, 2**40),
    seed=st.integers(0, 2**64 - 1),
    count=st.integers(1, 60),
    size=st.integers(1, 20),
)
def test_any_step_gives_distinct_examples(step, seed, count, size):
    lengths = LENGTHS[:count]
    batch = batch_indices(step, seed=seed, lengths=lengths, batch_size=size)
    assert batch.dtype == np.int64
    assert len(batch) == min(size, count) == len(set(batch.tolist()))
    assert batch.min() >= 0 and batch.max() < count
    again = batch_indices(step, seed=seed, lengths=lengths.tolist(), batch_size=size)
    assert np.array_equal(batch, again)


def test_an_epoch_sees_no_example_twice_and_drops_only_the_rest():
    seen = [index for batch in epoch(0) for index in batch]
    assert len(seen) == len(set(seen)) == 1000


def test_epochs_seeds_and_steps_differ():
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=6)
    dropped = [set(range(1003)) - {i for b in epoch(n) for i in b} for n in range(4)]
    assert len({frozenset(rest) for rest in dropped}) > 1


def test_lengths_in_a_batch_are_close_and_batches_are_in_no_order_of_length():
    batches = epoch(0)
    spread = np.mean([np.ptp(LENGTHS[batch]) for batch in batches])
    at_random = np.random.default_rng(1).permutation(1000).reshape(-1, 8)
    assert spread < 0.2 * np.mean([np.ptp(LENGTHS[batch]) for batch in at_random])
    means = [float(LENGTHS[batch].mean()) for batch in batches[:16]]
    assert means != sorted(means)


def test_a_known_answer_on_every_platform():
    """A changed order would silently break the resuming of every existing run."""
    lengths = np.arange(1003) * 37 % 97 + 3
    got = [batch_indices(s, seed=7, lengths=lengths, batch_size=4).tolist() for s in (0, 1, 250)]
    assert got == [[630, 693, 929, 216], [788, 429, 547, 277], [327, 854, 369, 293]]
    given = {"lengths": lengths, "labels": np.arange(1003) % 7 // 3}
    got = [batch_indices(s, seed=7, batch_size=4, **given).tolist() for s in (0, 250)]
    assert got == [[816, 693, 179, 924], [65, 369, 183, 634]]


@given(
    step=st.integers(0, 2**40),
    seed=st.integers(0, 2**64 - 1),
    share=st.floats(0.05, 0.95),
    size=st.integers(1, 20),
)
def test_labels_come_in_their_proportions(step, seed, share, size):
    labels = (np.arange(1003) < share * 1003).astype(np.int64)
    batch = batch_indices(step, seed=seed, lengths=LENGTHS, batch_size=size, labels=labels)
    assert len(set(batch.tolist())) == size
    assert abs(labels[batch].sum() - size * labels.mean()) <= 1.5


def test_labelled_batches_still_see_all_and_run_short():
    labels = np.random.default_rng(2).integers(0, 3, 1003)
    batches = [
        batch_indices(step, seed=5, lengths=LENGTHS, batch_size=8, labels=labels).tolist()
        for step in range(125)
    ]
    assert len({index for batch in batches for index in batch}) == 1000
    spread = np.mean([np.ptp(LENGTHS[batch]) for batch in batches])
    assert spread < 0.35 * np.mean([np.ptp(LENGTHS[n : n + 8]) for n in range(0, 1000, 8)])


def test_one_label_changes_nothing():
    for step in range(5):
        plain = batch_indices(step, seed=1, lengths=LENGTHS, batch_size=8)
        same = np.zeros(1003, np.int64)
        labelled = batch_indices(step, seed=1, lengths=LENGTHS, batch_size=8, labels=same)
        assert (labelled == plain).all()
