"""The noise: published vectors, the stream's rules, exact arithmetic, no K-sized temporaries."""

import hashlib
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fakes import noise_vector
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators.noise import add_noise, perturb

VECTORS = Path(__file__).parent.parent / "vectors"
CONTENT = json.loads((VECTORS / "noise.json").read_text())


@pytest.mark.parametrize("vector", CONTENT["vectors"], ids=lambda v: str(v["count"]))
def test_matches_published_vectors(vector):
    z = noise_vector(
        vector["count"],
        seed=int(vector["seed"]),
        step=int(vector["step"]),
        probe=vector["probe"],
    )
    stored = z.astype(np.int8)
    assert (stored == z).all()
    assert stored[:32].tolist() == vector["first"]
    assert hashlib.sha256(stored.tobytes()).hexdigest() == vector["sha256"]


def test_vectors_reach_ten_million_entries():
    assert max(vector["count"] for vector in CONTENT["vectors"]) == 10_000_000


def test_vectors_come_from_the_independent_generator(tmp_path):
    made = tmp_path / "noise.json"
    subprocess.run([sys.executable, VECTORS / "make_noise.py", made], check=True)
    assert made.read_bytes() == (VECTORS / "noise.json").read_bytes()


@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65, 1000, (1 << 16) - 1, 1 << 16, 200_003])
def test_a_prefix_does_not_depend_on_the_length(count):
    whole = noise_vector(300_000, seed=3, step=5)
    assert (noise_vector(count, seed=3, step=5) == whole[:count]).all()


def test_perturb_rounds_scale_and_sum_to_float32():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100_001).astype(np.float32)
    z = noise_vector(len(values), seed=9, step=2, probe=1)
    rows = np.empty((2, len(values)), dtype=np.float32)
    perturb(values, rows, (0.01, -0.01), seed=9, step=2, probe=1)
    assert (rows[0] == values + np.float32(0.01) * z).all()
    assert (rows[1] == values - np.float32(0.01) * z).all()
    add_noise(values, -0.03, seed=9, step=2, probe=1)
    rows[0] = 0
    perturb(rows[0], rows[:1], (1.0,), seed=9, step=2, probe=1)
    assert (rows[0] == z).all()


def test_directions_of_steps_and_probes_are_unrelated():
    count = 100_000
    keys = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 65536, 0)]
    found = [noise_vector(count, seed=s, step=t, probe=p) for s, t, p in keys]
    for a in range(len(found)):
        assert abs(found[a].mean()) < 5 / count**0.5
        for b in range(a):
            assert abs(found[a] @ found[b]) < 5 * count**0.5


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 2**64}, {"step": 2**48}, {"probe": 65536}])
def test_keys_outside_the_stream_are_refused(bad):
    with pytest.raises(TuningError, match="outside"):
        noise_vector(8, **{"seed": 0, "step": 0, **bad})


def test_seven_billion_parameter_model_updates_without_large_temporaries():
    values = np.zeros(6_700_000, dtype=np.float32)
    add_noise(values[:1000], 1e-3, seed=1, step=0)  # makes the table
    tracemalloc.start()
    add_noise(values, 1e-3, seed=1, step=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20
