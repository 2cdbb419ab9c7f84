"""A request that the program cannot take is refused by the name of what is wrong."""

import numpy as np
import pytest
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.engines.contract import check_request
from seedtune.runtime.errors import EngineError
from seedtune.runtime.scoring.answer_head import AnswerHead
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Batch

BOUNDS = Bounds(probes=2, rows=4, length=8, positions=6, candidates=3)
K = 5


def sizes(**changes):
    size = {"rows": 4, "length": 8, "scored": 6, "choices": 3, "probes": 2, "entries": K, **changes}
    return {
        "tokens": np.zeros((size["rows"], size["length"]), np.int64),
        "positions": np.zeros(size["scored"], np.int64),
        "candidates": np.zeros((size["scored"], size["choices"]), np.int64),
        "values": np.zeros((size["probes"], size["entries"]), np.float32),
    }


def check(request):
    values = request.pop("values")
    check_request(BOUNDS, Batch(**request, gold=np.zeros(1, np.int64)), values, K)


@pytest.mark.parametrize(
    "changes", [{}, {"rows": 1, "length": 2, "scored": 1, "choices": 1, "probes": 1}]
)
def test_both_ends_of_every_bound_are_taken(changes):
    check(sizes(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 5}, r"40 tokens are given, the program takes 2 to 32 \(bounds.rows\)"),
        ({"rows": 0}, r"\(bounds.rows\)"),
        ({"length": 9}, r"rows of 9 tokens, the program takes 2 to 8 \(bounds.length\)"),
        ({"length": 1}, r"\(bounds.length\)"),
        ({"scored": 7}, r"7 positions are given, .*\(bounds.positions\)"),
        ({"scored": 0}, r"\(bounds.positions\)"),
        ({"choices": 4}, r"candidates has 4 columns, .*\(bounds.candidates\)"),
        ({"probes": 3}, r"values has 3 rows, .*\(bounds.probes\)"),
        ({"probes": 0}, r"\(bounds.probes\)"),
        ({"entries": 4}, "values has 4 columns, the program takes 5"),
    ],
)
def test_a_size_outside_names_its_bound(changes, message):
    with pytest.raises(EngineError, match=message):
        check(sizes(**changes))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("tokens", np.zeros((4, 8), np.int32), "tokens is int32, must be int64"),
        ("values", np.zeros((2, K), np.float64), "values is float64, must be float32"),
        ("values", np.zeros(K, np.float32), "values has 1 axes, must have 2"),
        ("positions", np.full(6, 32), "positions holds 32, outside the 32 tokens given"),
        ("positions", np.full(6, -1), "positions holds -1, must not be negative"),
        ("tokens", np.full((4, 8), -100), "tokens holds -100, must not be negative"),
        ("candidates", np.full((6, 3), -1), "candidates holds -1, must not be negative"),
        ("candidates", np.zeros((5, 3), np.int64), "candidates has 5 rows for 6 positions"),
    ],
)
def test_a_wrong_array_is_named(name, array, message):
    with pytest.raises(EngineError, match=message):
        check(sizes() | {name: array})


def test_an_adapter_is_of_the_programs_shape():
    request = sizes()
    values = request.pop("values")
    batch = Batch(**request, gold=np.zeros(1, np.int64))
    adapter = np.zeros((4, 6), np.float32)
    check_request(BOUNDS, batch, values, K, adapter, (4, 6))
    check_request(BOUNDS, batch, values, K, None, (4, 6))
    for given, shape, message in (
        (adapter, None, "takes no adapter; export the bundle again"),
        (adapter, (6, 4), r"adapter is \(4, 6\), the program takes \(6, 4\)"),
        (adapter.astype(np.float64), (4, 6), "adapter is float64, must be float32"),
        (adapter[0], (4, 6), "adapter has 1 axes, must have 2"),
    ):
        with pytest.raises(EngineError, match=message):
            check_request(BOUNDS, batch, values, K, given, shape)


def test_positions_are_held_against_the_tokens_given_not_the_bound():
    short = sizes(rows=1, length=2)
    short["positions"][:] = 2
    with pytest.raises(EngineError, match="outside the 2 tokens given"):
        check(short)


def test_hidden_states_that_a_program_does_not_return_are_refused():
    class Plain(Engine):
        entries, hidden_width = K, 0

        def score(self, batch, values):
            return Scores(np.zeros((len(values), *batch.candidates.shape), np.float32), None)

    request = sizes()
    values = request.pop("values")
    batch = Batch(**request, gold=np.zeros(1, np.int64))
    assert Values(values[0]).score(Plain(), batch).shape == (1, 6, 3)
    head = AnswerHead(("b", "a", "c"), 2, np.zeros(10, np.float32))
    with pytest.raises(EngineError, match="returns no hidden states; export the bundle again"):
        Values(values[0], head).score(Plain(), batch)
