"""GPTQ on one matrix: against the method written out, and its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seedtune.export.quantise.gptq import choose_scales, inverse_factor, round_with_compensation
from seedtune.runtime.errors import ModelError

GROUP = 8


def matrix(seed, out, width):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


def moment(seed, width, shared):
    """Of columns that have ``shared`` of one common signal."""
    x = matrix(seed, 200, width) + shared * matrix(seed + 1, 200, 1)
    return x.t() @ x / 200


def rounded(weight, second_moment, **options):
    factor = inverse_factor(second_moment, **options)
    integers, scales = round_with_compensation(weight, second_moment, factor, GROUP)
    return integers, scales, integers * scales.repeat_interleave(GROUP, dim=1)


def cost(weight, found, second_moment):
    apart = weight - found
    return float(((apart @ second_moment) * apart).sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 5), st.integers(1, 3))
def test_it_is_optimal_brain_quantisation_in_column_order(seed, out, groups):
    """Section 2 of the paper: after each column the inverse is made anew for those still open."""
    width = groups * GROUP
    weight, second_moment = matrix(seed, out, width), moment(seed, width, 1.0)
    integers, scales, _ = rounded(weight, second_moment)
    damped = second_moment.double() + 0.01 * second_moment.diagonal().mean() * torch.eye(width)
    left = weight.double()
    for column in range(width):
        if column % GROUP == 0:
            group = slice(column, column + GROUP)
            own = choose_scales(left[:, group].t().float(), second_moment.diagonal()[group])
            assert torch.equal(scales[:, column // GROUP], own)
        step = scales[:, column // GROUP].double()
        place = (left[:, column] / step).clamp(-8, 7)
        # A tie may fall either way in float32.
        assert ((integers[:, column] - place).abs() < 0.5 + 1e-3).all()
        inverse = torch.linalg.inv(damped[column:, column:])
        error = left[:, column] - integers[:, column] * step
        left[:, column:] -= error[:, None] * inverse[0] / inverse[0, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20))
def test_unrelated_columns_are_rounded_each_by_itself(seed):
    weight = matrix(seed, 4, 2 * GROUP)
    second_moment = torch.diag(torch.rand(2 * GROUP) + 0.1)
    _, scales, found = rounded(weight, second_moment)
    steps = scales.repeat_interleave(GROUP, dim=1)
    assert torch.equal(found, (weight / steps).round().clamp(-8, 7) * steps)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.floats(1e-6, 1e6))
def test_scales_are_what_xnnpack_stores(seed, size):
    weight = size * matrix(seed, 3, 2 * GROUP)
    integers, scales, _ = rounded(weight, moment(seed, 2 * GROUP, 1.0))
    assert integers.dtype == torch.int8 and integers.min() >= -8 and integers.max() <= 7
    assert torch.equal(scales, scales.to(torch.bfloat16).float()) and (scales > 0).all()


def test_columns_out_of_use_stay_zero_and_disturb_nobody():
    weight, second_moment = matrix(1, 4, 3 * GROUP), moment(1, 3 * GROUP, 1.0)
    idle = [3, *range(GROUP, 2 * GROUP)]  # a whole group among them
    weight[:, idle] = 0.0
    second_moment[idle] = second_moment[:, idle] = 0.0
    used = [column for column in range(3 * GROUP) if column not in idle]
    factor = inverse_factor(second_moment)
    assert torch.equal(factor[idle], torch.eye(3 * GROUP)[idle])
    # Damped by the mean of those in use, as if there were no others.
    torch.testing.assert_close(factor[used][:, used], inverse_factor(second_moment[used][:, used]))
    integers, scales, found = rounded(weight, second_moment)
    assert (integers[:, idle] == 0).all() and (scales > 0).all()
    assert cost(weight, found, second_moment) < 0.02 * cost(weight, 0 * found, second_moment)


def test_a_rank_of_one_is_no_obstacle():
    column = matrix(2, GROUP, 1)
    second_moment = column @ column.t()
    weight = matrix(3, 4, GROUP)
    _, _, found = rounded(weight, second_moment)
    assert cost(weight, found, second_moment) < 0.01 * cost(weight, 0 * found, second_moment)


def test_many_rows_are_rounded_like_few():
    weight, second_moment = matrix(4, 5000, GROUP), moment(4, GROUP, 1.0)
    integers, scales, _ = rounded(weight, second_moment)
    some = slice(4090, 4100)  # on both sides of a cut
    again, own, _ = rounded(weight[some], second_moment)
    assert torch.equal(integers[some], again) and torch.equal(scales[some], own)


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(ModelError, match="NaN or infinity"):
        inverse_factor(torch.full((GROUP, GROUP), torch.nan))
