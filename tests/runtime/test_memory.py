"""Passes are cut until they fit into memory; what fits nowhere is refused with what to lower."""

import re
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines import memory
from seedtune.runtime.engines.memory import MB, PassMemory, fit_passes
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators.readout import MEMORY, Readout
from seedtune.runtime.scoring.batch_loss import split_batch
from seedtune.runtime.scoring.known_forwards import known_bytes
from seedtune.runtime.tasks import Encoded
from tiny_run import HELD_OUT, START, K, tuner

NEED = PassMemory(token=1000, position=500, tables=7000)
WIDE = Bounds(probes=4, rows=4, length=32, positions=64, candidates=2)
HELD = 10**6


def example(length, rows=1, positions=1):
    places = np.array([[n % rows, length - 1] for n in range(positions)])
    return Encoded(
        np.zeros((rows, length), np.int64), places, np.zeros((positions, 2), np.int64), 0
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A process of ``HELD`` bytes on a machine with 100 MB left."""
    monkeypatch.setattr(memory, "resident_bytes", lambda: HELD)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**8)
    monkeypatch.setattr(memory, "PAGES", 0)


def test_what_fits_is_left_as_large_as_the_program_allows():
    passes = fit_passes(WIDE, NEED, [example(32)])
    assert (passes.probes, passes.tokens) == (WIDE.probes, WIDE.tokens)
    assert [len(part) for part in split_batch([example(32)] * 5, passes)] == [4, 1]
    shorter = fit_passes(WIDE, NEED, [example(8), example(5)])
    assert (shorter.probes, shorter.tokens) == (WIDE.probes, WIDE.tokens)


@given(st.lists(st.integers(2, 32), min_size=1, max_size=40))
def test_with_room_batches_are_cut_as_the_program_alone_would(lengths):
    """One long example must not make passes over short ones smaller."""
    examples = [example(length) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "resident_bytes", lambda: HELD)
        patch.setattr(memory, "available_bytes", lambda: 10**8)
        passes = fit_passes(WIDE, NEED, examples)
    short = sorted(examples, key=lambda each: each.length)[: max(1, len(examples) // 2)]
    assert [len(part) for part in split_batch(short, passes)] == [
        len(part) for part in split_batch(short, WIDE)
    ]


@given(
    limit=st.integers(HELD, HELD + 10**6),
    lengths=st.lists(st.integers(2, 32), min_size=1, max_size=4),
    rows=st.integers(1, 3),
)
def test_result_fits_the_limit_and_the_program_and_every_example(limit, lengths, rows):
    examples = [example(length, rows) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "resident_bytes", lambda: HELD)
        patch.setattr(memory, "available_bytes", lambda: 10**8)
        patch.setattr(memory, "PAGES", 0)
        try:
            passes = fit_passes(WIDE, NEED, examples, limit=limit)
        except TuningError:
            least = replace(WIDE, probes=1, rows=rows, length=max(lengths), positions=rows)
            assert HELD + NEED.bytes(least) > limit
            return
    assert HELD + NEED.bytes(passes) <= limit
    assert 1 <= passes.probes <= WIDE.probes
    assert passes.length >= max(lengths) and passes.tokens >= rows * max(lengths)
    assert passes.tokens <= max(WIDE.tokens, rows * max(lengths))


def test_probes_go_before_rows():
    whole = HELD + NEED.bytes(replace(WIDE, positions=4))
    fewer = fit_passes(WIDE, NEED, [example(32)], limit=whole - 1)
    assert (fewer.probes, fewer.rows) == (3, 4)
    single = fit_passes(WIDE, NEED, [example(32)], limit=HELD + 7000 + 40_000)
    assert (single.probes, single.rows) == (1, 1)


def test_the_machines_own_memory_limits_too(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 45_000)
    assert fit_passes(WIDE, NEED, [example(32)]).probes == 1
    assert fit_passes(WIDE, NEED, [example(32)], limit=10**9).probes == 1
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert fit_passes(WIDE, NEED, [example(32)]) == WIDE


@pytest.mark.parametrize(
    ("one", "advice"),
    [
        (example(32), r"shorter than 32 tokens .*a lower --length"),
        (example(4, positions=3), r"fewer positions"),
    ],
)
def test_refusal_says_what_to_lower(one, advice):
    need = replace(NEED, position=10**5) if one.length == 4 else NEED
    with pytest.raises(
        TuningError, match=rf"one example needs 1 MB, .*the limit is 1 MB.*{advice}"
    ):
        fit_passes(WIDE, need, [one], limit=HELD + 8000)


def test_refusal_says_what_is_there_what_is_needed_and_what_to_type(monkeypatch):
    held, need = 208 * MB, PassMemory(token=MB, position=0, tables=0)
    monkeypatch.setattr(memory, "resident_bytes", lambda: held)
    for free in (None, 10**12):
        monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
        said = (
            "one example needs 260 MB, 228 MB of them before any pass; the limit is 120 MB: "
            "raise the memory limit (--memory-limit 273MB), or "
        )
        with pytest.raises(TuningError, match=re.escape(said)):
            fit_passes(WIDE, need, [example(32)], limit=120 * MB, reserve=20 * MB)
        fit_passes(WIDE, need, [example(32)], limit=273 * MB, reserve=20 * MB)
    monkeypatch.setattr(memory, "available_bytes", lambda: 40 * MB)
    said = "one example needs 260 MB, 228 MB of them before any pass; 248 MB are there: end other"
    for limit in (None, 10**12):  # the limit would not help
        with pytest.raises(TuningError, match=re.escape(said)):
            fit_passes(WIDE, need, [example(32)], limit=limit, reserve=20 * MB)


def test_the_loop_keeps_to_a_limit_and_learns_the_same(tmp_path):
    """A fake program's losses do not depend on how they are cut into passes."""
    ends, most = [], []
    for folder, limit in (("free", None), ("tight", HELD + 7000 + 7 * 1000 + 500)):
        engine = FakeEngine(K)
        start = replace(START, memory=NEED)
        with tuner(tmp_path / folder, engine=engine, start=start, memory_limit=limit) as live:
            for _ in live:
                pass
            ends.append(live.values.sensitive.copy())
        most.append(max(probes * tokens[0] for tokens, probes in engine.calls))
    assert most[0] > 8 and most[1] == 1
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-3, atol=1e-4)
    with pytest.raises(TuningError, match="raise the memory limit"):
        tuner(tmp_path / "no", start=replace(START, memory=NEED), memory_limit=HELD)


def test_what_a_readout_will_remember_is_left_free(tmp_path):
    start = replace(START, memory=NEED)
    learnt = Readout(2, FakeEngine.hidden_width, 2, 8).memory_bytes(64)
    learnt += known_bytes(FakeEngine(K), HELD_OUT)
    limit = HELD + 7000 + 7 * 1000 + 500
    asked = {"start": start, "settings": {"estimator": "readout", "batch_size": 8}}
    for bytes_left, fits in ((limit + learnt, True), (limit + learnt - 7500, False)):
        folder = tmp_path / str(fits)
        if not fits:
            with pytest.raises(TuningError, match="raise the memory limit"):
                tuner(folder, memory_limit=bytes_left, **asked)
            assert not folder.exists()
            continue
        engine = FakeEngine(K)
        with tuner(folder, engine=engine, memory_limit=bytes_left, **asked) as live:
            live.step()
        with pytest.raises(TuningError, match="raise the memory limit"):  # settings of the run
            tuner(folder, memory_limit=bytes_left - 7500, **{**asked, "settings": None})
        with tuner(folder, memory_limit=bytes_left, **asked) as live:  # and the run is free again
            assert live.history.steps == 1
        assert max(tokens[0] for tokens, _ in engine.calls) == 1


def test_a_readout_remembers_so_many_examples_and_no_more():
    memory_bytes = Readout(1, 10, 3, 4).memory_bytes
    assert memory_bytes(5) == 5 * memory_bytes(1)
    assert memory_bytes(10**6) == memory_bytes(MEMORY)
