"""What every engine that runs here keeps of the contract, each with its program of one bundle."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from compiler import needs_compiler
from exported_bundle import arrays
from exported_bundle import request as asked
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.executorch_native import NativeEngine
from seedtune.runtime.errors import EngineError
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
    moved = engine.score(batch, values).hidden
    np.testing.assert_array_equal(moved[0], same.hidden[0])
    assert (moved[1] != same.hidden[1]).any()


def test_an_adapter_moves_the_log_probabilities_alone(engine, reach):
    batch, values = asked(reach, **MOST)
    plain, adapter = engine.score(batch, values), arrays(batch, values)[-1]
    zeros = engine.score(batch, values, np.zeros_like(adapter))
    np.testing.assert_array_equal(zeros.logp, plain.logp)
    moved = engine.score(batch, values, adapter)
    assert np.abs(moved.logp - plain.logp).mean() > 0.1
    np.testing.assert_array_equal(moved.hidden, plain.hidden)
    np.testing.assert_array_equal(engine.score(batch, values).logp, plain.logp)
    turned = engine.score(batch, values, np.asfortranarray(adapter))
    np.testing.assert_array_equal(turned.logp, moved.logp)
    with pytest.raises(EngineError, match=r"adapter is \(64, 32\), the program takes \(32, 64\)"):
        engine.score(batch, values, adapter.T.copy())


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
        ({"adapter": None}, r"adapter of shape \(32, 64\), the bundle says None"),
    ):
        with pytest.raises(EngineError, match=message):
            open_engine(replace(reach, **changes), 1, name=name)
