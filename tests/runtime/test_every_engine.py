"""What every engine that runs here keeps of the contract, each with its program of one bundle."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from compiler import needs_compiler
from exported_bundle import TERMS, arrays, moved
from exported_bundle import request as asked
from seedtune.runtime.bundle import Adapter
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.executorch_native import NativeEngine
from seedtune.runtime.errors import EngineError
from seedtune.runtime.scoring.text_head import TextHead
from seedtune.runtime.tasks import Batch

MOST = {"rows": 8, "length": 32, "scored": 48, "choices": 4, "probes": 2}
SOME = {"rows": 3, "length": 20, "scored": 9, "choices": 3, "probes": 2}
NATIVE = pytest.param("executorch-native", marks=needs_compiler)
OTHERS = "onnxruntime", "torch-int4:cpu"


@pytest.fixture(scope="module", params=[NATIVE, "executorch-binding", *OTHERS])
def engine(request, reach):
    with open_engine(reach, 1, name=request.param) as opened:
        yield opened
    with pytest.raises(EngineError, match="the program is closed"):
        opened.score(*asked(reach, **SOME))
    opened.close()


def test_values_matter_and_equal_probes_give_equal_bits(engine, reach):
    batch, values = asked(reach, **MOST)
    different = engine.score(batch, values).logp
    assert (different[0] != different[1]).any()
    values[1] = values[0]
    same = engine.score(batch, values)
    np.testing.assert_array_equal(same.logp[0], same.logp[1])
    np.testing.assert_array_equal(same.logp[0], different[0])
    np.testing.assert_array_equal(same.hidden[0], same.hidden[1])
    values[1] += np.float32(0.1)
    apart = engine.score(batch, values).hidden
    np.testing.assert_array_equal(apart[0], same.hidden[0])
    assert (apart[1] != same.hidden[1]).any()


def test_an_adapter_moves_the_log_probabilities_alone(engine, reach):
    batch, values = asked(reach, **MOST)
    plain, (adapter, _) = engine.score(batch, values), moved(batch, values)
    zeros = engine.score(batch, values, np.zeros_like(adapter))
    np.testing.assert_array_equal(zeros.logp, plain.logp)
    found = engine.score(batch, values, adapter)
    assert np.abs(found.logp - plain.logp).mean() > 0.1
    np.testing.assert_array_equal(found.hidden, plain.hidden)
    np.testing.assert_array_equal(engine.score(batch, values).logp, plain.logp)
    turned = engine.score(batch, values, np.asfortranarray(adapter))
    np.testing.assert_array_equal(turned.logp, found.logp)
    with pytest.raises(EngineError, match=r"adapter is \(64, 32\), the program takes \(32, 64\)"):
        engine.score(batch, values, adapter.T.copy())


def all_of(scores):
    return [scores.logp, scores.hidden, *scores.inside]


def test_terms_move_what_stands_above_them_and_zeros_nothing(engine, reach):
    assert engine.terms_shapes == TERMS
    batch, values = asked(reach, **MOST)
    adapter, terms = moved(batch, values)
    plain = engine.score(batch, values, inside=True)
    zeros = engine.score(batch, values, None, [np.zeros_like(each) for each in terms], inside=True)
    for each, other in zip(all_of(zeros), all_of(plain), strict=True):
        np.testing.assert_array_equal(each, other)
    assert [each.shape for each in plain.inside] == [(2, 48, 2), (2, 48, 32)]
    assert engine.score(batch, values).inside == ()
    found = engine.score(batch, values, None, terms, inside=True)
    # The last block has them: below stand the first block's state and mean, and what its MLP reads.
    first, last, mean = (slice(32 * part, 32 * part + 32) for part in range(3))
    for part in (first, mean):
        np.testing.assert_array_equal(found.hidden[..., part], plain.hidden[..., part])
    np.testing.assert_array_equal(found.inside[1], plain.inside[1])
    assert np.abs(found.hidden[..., last] - plain.hidden[..., last]).mean() > 0.1
    assert np.abs(found.logp - plain.logp).mean() > 0.1
    for number in range(3):
        alone = [each * (number == place) for place, each in enumerate(terms)]
        assert np.abs(engine.score(batch, values, None, alone).logp - plain.logp).mean() > 0.02
    both = engine.score(batch, values, adapter, [*map(np.asfortranarray, terms)])
    np.testing.assert_array_equal(both.hidden, found.hidden)
    assert np.abs(both.logp - found.logp).mean() > 0.1
    np.testing.assert_array_equal(engine.score(batch, values).logp, plain.logp)


def test_terms_of_other_shapes_are_refused_by_number(engine, reach):
    batch, values = asked(reach, **SOME)
    gate, up, down = moved(batch, values)[1]
    for odd, told in (
        ([gate, up], "2 terms are given, the program takes 3"),
        ([gate, up, down.T.copy()], r"terms\[2\] is \(8, 32\), the program takes \(32, 8\)"),
        ([gate, up.astype(np.float64), down], r"terms\[1\] is float64, must be float32"),
        ([gate.reshape(-1), up, down], r"terms\[0\] has 1 axes, must have 2"),
    ):
        with pytest.raises(EngineError, match=told):
            engine.score(batch, values, None, odd)


@pytest.mark.parametrize("times", [np.float32(0), np.float32(1)])
def test_numpy_makes_the_same_of_the_matrices_that_the_bundle_points_to(engine, reach, times):
    """Of what the MLP of the last block reads: its state, its size and the log-probabilities. So
    the matrices are where the bundle says, and terms are what is said of them."""
    batch, values = asked(reach, **SOME)
    values[:] = reach.values
    terms = [times * each for each in moved(batch, values)[1]]
    found = engine.score(batch, values, None, terms, inside=True)
    text = TextHead.of(reach)
    below = text.terms
    part = below.part
    reads = part.inputs[0], part.inputs[0], part.inner[0]
    gate, up, down = (
        matrix.whole() + term @ along
        for matrix, term, along in zip(below.matrices, terms, reads, strict=True)
    )
    middle = found.inside[1][0]
    x = middle / np.sqrt(np.square(middle).mean(axis=1, keepdims=True) + reach.terms.eps)
    x *= part.norms[0]
    opened = x @ gate.T
    state = middle + (opened / (1 + np.exp(-opened)) * (x @ up.T)) @ down.T
    size = 1 / np.sqrt(np.square(state).mean(axis=1, keepdims=True) + 1e-6)
    hidden = found.hidden[0, :, :64].copy()
    apart = np.abs(hidden[:, 32:] - state * size)
    exact = engine.program.startswith(("onnx", "torch"))
    assert apart.max() < (1e-3 if exact else 0.3) and apart.mean() < (1e-4 if exact else 0.03)
    np.testing.assert_allclose(found.inside[0][0, :, 1:], size, rtol=1e-3 if exact else 0.1)
    hidden[:, 32:] = state * size
    logits = text.frame.read(hidden) @ text.words.vectors(slice(None)).T
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    wanted = np.take_along_axis(logits, batch.candidates, axis=1)
    apart = np.abs(found.logp[0] - wanted)
    assert apart.max() < (0.01 if exact else 0.5) and apart.mean() < (2e-3 if exact else 0.05)


def test_views_are_read_as_they_appear_and_results_are_the_callers(engine, reach):
    batch, values = asked(reach, **MOST)
    first = engine.score(batch, values)
    kept, kept_states = first.logp.copy(), first.hidden.copy()
    turned = Batch(*map(np.asfortranarray, arrays(batch, values)[:3]), gold=batch.gold)
    np.testing.assert_array_equal(engine.score(turned, np.asfortranarray(values)).logp, kept)
    reverse = engine.score(replace(batch, tokens=batch.tokens[::-1]), values[::-1])
    assert (reverse.logp != kept).any()
    np.testing.assert_array_equal(first.logp, kept)
    np.testing.assert_array_equal(first.hidden, kept_states)


def test_calls_from_several_threads_wait_for_each_other(engine, reach):
    requests = [asked(reach, **{**SOME, "rows": rows}) for rows in (1, 2, 3)]
    alone = [engine.score(*each).logp for each in requests]
    right = []

    def work(which):
        for _ in range(20):
            right.append(np.array_equal(engine.score(*requests[which]).logp, alone[which]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert len(right) == 60 and all(right)


def test_what_the_program_cannot_take_is_told_in_one_line_that_names_the_file(engine, reach, capfd):
    batch, values = asked(reach, **SOME)
    with pytest.raises(EngineError, match="values has 167 columns"):
        engine.score(batch, values[:, 1:])
    for name in ("tokens", "candidates"):
        wrong = replace(batch, **{name: np.full_like(getattr(batch, name), 100_000)})
        with pytest.raises(EngineError) as error:
            engine.score(wrong, values)
        # torch is not asked: on a GPU an index outside ends the process's use of it.
        said = str(error.value)
        assert said.startswith((f"{reach.path}/program.", f"{name} holds 100000, outside the v"))
        assert "\n" not in said and "/proc" not in said
    assert np.isfinite(engine.score(batch, values).logp).all()
    told = capfd.readouterr()
    assert not told.out and (not told.err or not isinstance(engine, NativeEngine))


@pytest.mark.parametrize("name", [NATIVE, *OTHERS])
def test_a_program_of_other_sizes_than_the_bundle_says(reach, name):
    """Its hash was checked, so that the bundle's maker mixed them."""
    for changes, message in (
        ({"values": reach.values[1:]}, "takes 168 values, the bundle says 167; export the"),
        ({"hidden_blocks": reach.hidden_blocks[1:]}, "states of width 96, the bundle says 64"),
        (
            {"adapter": Adapter(32, (2,))},
            r"adapter of shape \(32, 64\), the bundle says \(32, 32\)",
        ),
        (
            {"terms": None},
            r"takes (terms of shapes \(\(64, 8\), .*, the bundle says \(\)|other inputs)",
        ),
    ):
        with pytest.raises(EngineError, match=message):
            open_engine(replace(reach, **changes), 1, name=name)
