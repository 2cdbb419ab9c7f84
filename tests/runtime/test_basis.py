"""Directions: exact sums, kept in a bundle, damaged files refused."""

from pathlib import Path

import numpy as np
import pytest
from fakes import fake_basis
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from seedtune.runtime.bundle import open_bundle, pack_bundle, with_task
from seedtune.runtime.bundle.basis import parse_basis
from seedtune.runtime.errors import BundleError
from tiny_bundle import TASK, write_tiny_bundle

K = 40
BASIS = fake_basis(K)
FILE = Path("basis.safetensors")


@given(st.lists(st.floats(-3, 3), max_size=16))
def test_sums_are_float32_in_order(coefficients: list[float]) -> None:
    values = np.linspace(-1, 1, K, dtype=np.float32)
    expected = values.copy()
    for number, coefficient in enumerate(coefficients):
        factor = np.float32(coefficient * float(BASIS.scales[number]))
        for k in range(K):
            expected[k] = np.float32(
                expected[k] + np.float32(factor * np.float32(BASIS.directions[number, k]))
            )
    BASIS.add(values, np.array(coefficients))
    assert values.tobytes() == expected.tobytes()


def test_comes_back_from_its_file() -> None:
    again = parse_basis(BASIS.to_bytes(), FILE, K)
    assert again.size == 16
    for name in ("directions", "scales", "shifts"):
        assert (getattr(again, name) == getattr(BASIS, name)).all()


def tensors(**changes: np.ndarray) -> bytes:
    whole = {"directions": BASIS.directions, "scales": BASIS.scales, "shifts": BASIS.shifts}
    return save({**whole, **changes})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"junk", "not a safetensors file"),
        (save({"directions": BASIS.directions}), "must hold"),
        (tensors(directions=BASIS.directions.astype(np.int16)), "directions is int16"),
        (tensors(scales=BASIS.scales[:3]), "scales has 3 directions"),
        (tensors(shifts=np.zeros(16, np.float32)), "shifts must be finite and above 0"),
        (tensors(scales=np.full(16, np.nan, np.float32)), "scales must be finite"),
        (tensors(directions=BASIS.directions[:, :-1].copy()), "directions have 39 values"),
    ],
)
def test_damage_is_named(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=f"basis.safetensors: {message}"):
        parse_basis(data, FILE, K)


def test_a_bundle_carries_them_with_its_task(tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", task=None)
    assert plain.basis is None
    basis = fake_basis(plain.K)
    whole = with_task(plain, tmp_path / "whole", TASK, basis)
    assert whole.sha256 != plain.sha256
    pack_bundle(whole.path, tmp_path / "one.seedtune")
    for path in (whole.path, tmp_path / "one.seedtune"):
        again = open_bundle(path)
        assert again.task == TASK
        assert again.basis is not None
        assert (again.basis.directions == basis.directions).all()
        assert (again.values == plain.values).all()
    (whole.path / "basis.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"basis.safetensors: has 1 bytes"):
        open_bundle(whole.path)
    assert with_task(plain, tmp_path / "none", TASK, None).basis is None


def test_directions_of_other_values_are_refused(tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "plain")
    with pytest.raises(BundleError, match="the layers add up to"):
        with_task(plain, tmp_path / "wrong", TASK, fake_basis(plain.K + 1))
