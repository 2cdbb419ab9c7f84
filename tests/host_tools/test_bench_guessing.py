"""The arithmetic of the guesser; its figures are measured on SmolLM2."""

import numpy as np
import pytest
from seedtune.host_tools.bench.guessing import ranks, show_guessing, slopes_along_noise

SLOPES = slopes_along_noise(np.random.default_rng(0).standard_normal((200, 64), np.float32), 256)


def test_slopes_are_those_along_a_run_s_noise():
    gradients = np.ones((1, 64), np.float32)
    found = slopes_along_noise(gradients, 130)
    assert found.shape == (1, 130) and len(np.unique(found)) > 10
    assert abs(found).max() <= 64 and (found % 2 == 0).all()  # sums of 64 signs


def test_a_batch_of_one_gives_the_text_away():
    assert (ranks(SLOPES, 16, 1, 1) == 1).all()


@pytest.mark.parametrize("batch", [4, 16])
def test_larger_batches_hide_it_and_repetition_uncovers_it(batch):
    once, often = (np.median(ranks(SLOPES, 16, batch, seen)) for seen in (1, 16 * batch))
    assert 10 < once <= 130 and often < once / 2


def test_what_is_shown():
    found = {"1": {"1": {"median": 1.0}, "4": {"median": 1.0}}}
    shown = show_guessing({"candidates": 1000, "by_batch": found})
    assert shown.splitlines()[1] == "batch  1  1 times: 1  4 times: 1"
