"""Which examples a step sees: a function of seed and step alone, so that resuming needs no state.

Each epoch is a permutation of the examples, cut into windows of 16 batches. Inside a window the
examples are sorted by length before they are cut into batches, so that short batches run short;
the window's batches then come in random order. The last, incomplete batch of an epoch is dropped:
its examples have their turn in other epochs.

With labels, every batch has them in the proportions of the whole (as nearly as its size allows):
a batch that is short of one label says more about that label's share than about the task.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WINDOW = 16
# Noise keys are ``[seed, step << 16 | probe]`` with steps below 2**47, so they stay below this bit
# and the streams of noise and data never meet.
_DATA_STREAM = 1 << 63


def batch_indices(
    step: int,
    *,
    seed: int,
    lengths: Sequence[int] | NDArray[np.int64],
    batch_size: int,
    labels: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Indices of the examples of step ``step`` (from 0).

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch; all of them if there are fewer.
        labels: int64, of each example, to spread evenly over the batches; None leaves them to
            chance.

    Returns:
        int64 ``[min(batch_size, len(lengths))]``, the same on every platform.
    """
    count = len(lengths)
    size = min(batch_size, count)
    batches = count // size
    epoch, batch = divmod(step, batches)
    # As uint64, explicitly: a list with a word this large would pass through float64.
    key = np.array([seed, _DATA_STREAM | epoch], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(count + batches)
    # A stable sort of raw words: numpy guarantees the words, not the output of its shuffle.
    order = np.argsort(words[:count], kind="stable")
    if labels is not None:
        order = order[_spread(labels[order])]
    window, place = divmod(batch, _WINDOW)
    first, last = window * _WINDOW, min((window + 1) * _WINDOW, batches)
    members = order[first * size : last * size]
    members = members[np.argsort(np.asarray(lengths)[members], kind="stable")]
    if labels is not None:
        members = members[_spread(labels[members])]
    turn = int(np.argsort(words[count + first : count + last], kind="stable")[place])
    return members[turn * size : (turn + 1) * size].astype(np.int64)


def _spread(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order in which every label comes at even distances, its examples in their given order."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.argsort(place, kind="stable")
