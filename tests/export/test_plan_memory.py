"""The memory plan: no two tensors overlap while both live, and the same plan at each export."""

import itertools

import pytest
import torch
from executorch.exir.tensor import TensorSpec
from seedtune.export.lower.plan_memory import lowest_place
from seedtune.runtime.errors import ModelError

ALIGNMENT = 16


def spec(floats, born, dies, base=None, at=0):
    made = TensorSpec(torch.float32, torch.Size([floats]))
    made.lifetime = [born, dies]
    made.storage_base, made.storage_base_offset = base, at
    return made


def offsets(specs):
    plan = lowest_place(ALIGNMENT, specs, None, None)
    return [plan.spec_dict[one].mem_offset for one in specs]


def test_each_takes_the_lowest_free_place():
    specs = [spec(64, 0, 1), spec(32, 1, 2), spec(16, 2, 3)]
    assert offsets(specs) == [0, 256, 0]
    assert lowest_place(ALIGNMENT, specs, None, None, 64).bufsizes == [0, 256 + 128 + 64]


def test_the_order_of_equal_sizes_changes_no_plan():
    """``specs`` may come from a set, whose order differs from process to process."""
    lives = [(0, 1), (1, 2), (2, 3), (0, 3)]
    found = set()
    for order in itertools.permutations(lives):
        places = offsets([spec(8, *life) for life in order])
        found.add(tuple(sorted(zip(order, places, strict=True))))
    assert len(found) == 1


def test_parts_lie_inside_their_base():
    first, base = spec(32, 0, 2), spec(16, 0, 2)
    part = spec(8, 1, 2, base, 16)
    inner = spec(4, 1, 2, part, 16)
    assert offsets([inner, part, base, first]) == [160, 144, 128, 0]


def test_parts_without_a_place_are_refused_by_name():
    base = spec(16, 0, 2)
    with pytest.raises(ModelError, match=r"TensorSpec.*\[8\].* that is not planned"):
        offsets([spec(8, 1, 2, base)])
    with pytest.raises(ModelError, match=r"TensorSpec.*\[8\].* does not lie inside"):
        offsets([base, spec(8, 1, 2, base, 48)])
    with pytest.raises(ModelError, match=r"TensorSpec.*\[8\].*byte 8 is not aligned to 16"):
        offsets([base, spec(8, 1, 2, base, 8)])
