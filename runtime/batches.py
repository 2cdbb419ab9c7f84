"""Which examples a step sees: a function of seed and step alone, so that resuming needs no state.

Each epoch is a permutation of the examples, cut into windows of 16 batches. Inside a window the
examples are sorted by length before they are cut into batches, so that short batches run short;
the window's batches then come in random order. The last, incomplete batch of an epoch is dropped:
its examples have their turn in other epochs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WINDOW = 16
# Noise keys are ``[seed, step << 16 | probe]`` with steps below 2**47, so they stay below this bit
# and the streams of noise and data never meet.
_DATA_STREAM = 1 << 63


def batch_indices(
    step: int, *, seed: int, lengths: Sequence[int] | NDArray[np.int64], batch_size: int
) -> NDArray[np.int64]:
    """Indices of the examples of step ``step`` (from 0).

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch; all of them if there are fewer.

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
    window, place = divmod(batch, _WINDOW)
    first, last = window * _WINDOW, min((window + 1) * _WINDOW, batches)
    members = order[first * size : last * size]
    members = members[np.argsort(np.asarray(lengths)[members], kind="stable")]
    turn = int(np.argsort(words[count + first : count + last], kind="stable")[place])
    return members[turn * size : (turn + 1) * size].astype(np.int64)
