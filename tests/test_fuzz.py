"""Some thousand cases of ``fuzz``, which has a longer mode, and that it sees what it looks for."""

import os
import signal
import time

import fuzz
import pytest


def test_damaged_and_crafted_files_are_refused_or_mean_what_they_meant(reach):
    """SEEDTUNE_CASES sets how many."""
    cases = int(os.environ.get("SEEDTUNE_CASES", "8000"))
    found, failures = fuzz.fuzz(cases, programs=reach.path)
    assert not failures, failures[:5]
    assert sum(counts.total() for counts in found.values()) == cases
    for kind, counts in found.items():
        assert counts[fuzz.REFUSED] or "metrics" in kind, kind
    assert found["header"][fuzz.SOUND]  # not all by their version


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        (lambda: [][0], "traceback"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal"),
        (lambda: time.sleep(30), "hang"),
        (lambda: "different", "different"),
        (lambda: len(b"x" * (300 << 20)) and fuzz.EQUAL, "memory"),
    ],
)
def test_every_kind_of_failure_is_seen(monkeypatch, fault, result):
    def case(rng):
        return "x", fault if rng.random() < 0.2 else lambda: fuzz.EQUAL

    def only(folder, programs):
        return {"odd": case}

    monkeypatch.setattr(fuzz, "kinds", only)
    monkeypatch.setattr(fuzz, "SECONDS", 0.6)
    found, failures = fuzz.fuzz(5, seed=1)
    assert found["odd"][result] >= 1
    assert found["odd"][result] + found["odd"][fuzz.EQUAL] == found["odd"].total() == 5
    assert all(f"odd: {result}" in failure for failure in failures) and failures
