"""Exported values load to the bit, or are refused: damaged, of another bundle, or no values."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from faults import damaged
from safetensors import safe_open
from safetensors.numpy import load, save
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.errors import BundleError
from seedtune.runtime.scoring.values_file import export_values, load_values
from tiny_bundle import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "b")


@pytest.fixture(params=[0, 6])
def values(request: pytest.FixtureRequest, bundle: Bundle) -> np.ndarray:
    """Tuned values, without and with a readout's weights."""
    rng = np.random.default_rng(0)
    tuned = bundle.values.astype(np.float32) + 0.25
    return np.concatenate([tuned, rng.standard_normal(request.param).astype(np.float32)])


def of_the_version_before(bundle: Bundle, values: np.ndarray, step: int) -> bytes:
    tensors = {
        "values": values[: bundle.K].astype(np.float16),
        "indices": np.array(bundle.indices),
    }
    if len(values) > bundle.K:
        tensors["own"] = values[bundle.K :]
    metadata = {
        "format": "seedtune-values",
        "bundle_sha256": bundle.sha256,
        "step": str(step),
        "float32_sha256": values_sha256(values),
    }
    return save(tensors, metadata)


def expected(bundle: Bundle, values: np.ndarray) -> bytes:
    half = values[: bundle.K].astype(np.float16).astype(np.float32)
    return np.concatenate([half, values[bundle.K :]]).tobytes()


def test_a_flipped_bit_of_every_byte_is_refused(
    tmp_path: Path, bundle: Bundle, values: np.ndarray
) -> None:
    file = tmp_path / "v.safetensors"
    export_values(file, values, bundle, step=7)
    assert load_values(file, bundle).tobytes() == expected(bundle, values)
    data = file.read_bytes()
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 7]) + data[at + 1 :])
        with pytest.raises(BundleError) as caught:
            load_values(file, bundle)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_damaged_files_are_refused(tmp_path: Path, bundle: Bundle, values: np.ndarray) -> None:
    file, rng = tmp_path / "v.safetensors", random.Random(1)
    export_values(file, values, bundle, step=7)
    data = file.read_bytes()
    for _ in range(300):
        fault, bad = damaged(data, rng)
        if bad != data:
            file.write_bytes(bad)
            with pytest.raises(BundleError):
                pytest.fail(f"{fault}: {load_values(file, bundle)}")


def test_values_of_another_bundle_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    other = write_tiny_bundle(tmp_path / "c", program=b"another model, the same places")
    export_values(tmp_path / "v", bundle.values.astype(np.float32), bundle, step=7)
    with pytest.raises(BundleError, match=rf"v: holds values of bundle {bundle.sha256[:12]}\.\.\."):
        load_values(tmp_path / "v", other)


def test_a_file_without_the_hash_passes_only_as_the_version_before_wrote_it(
    tmp_path: Path, bundle: Bundle, values: np.ndarray
) -> None:
    file = tmp_path / "v"
    old = of_the_version_before(bundle, values, 7)
    file.write_bytes(old)
    assert load_values(file, bundle).tobytes() == expected(bundle, values)
    export_values(file, values, bundle, step=7)
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    tensors = load(file.read_bytes())
    for change in (
        {"format": "other"},
        {"bundle_sha256": "0" * 64},
        {"step": "-1"},
        {"content_sha256": "0" * 64},
        {"content_sha255": metadata["content_sha256"]},
    ):
        changed = {**metadata, **change}
        if "content_sha255" in change:
            del changed["content_sha256"]
        file.write_bytes(save(tensors, changed))
        with pytest.raises(BundleError):
            load_values(file, bundle)
    file.write_bytes(save(tensors))
    with pytest.raises(BundleError, match="__metadata__ is missing"):
        load_values(file, bundle)
    shutil.copy(bundle.path / "values.safetensors", file)
    with pytest.raises(BundleError, match="not a values file"):
        load_values(file, bundle)


def test_the_start_of_the_version_before_is_checked_against_the_bundle(
    tmp_path: Path, bundle: Bundle
) -> None:
    start, file = bundle.values.astype(np.float32), tmp_path / "v"
    file.write_bytes(of_the_version_before(bundle, start, 0))
    assert load_values(file, bundle).tobytes() == start.tobytes()
    file.write_bytes(of_the_version_before(bundle, start + 1, 0))
    with pytest.raises(BundleError, match="at step 0, but not the values of"):
        load_values(file, bundle)


@pytest.mark.parametrize(
    "tensors",
    [
        {"values": np.zeros((12, 1), np.float16)},
        {"values": np.zeros(12, np.float32)},
        {"values": np.zeros(11, np.float16)},
        {"own": np.zeros(3, np.float16)},
        {"own": np.zeros((3, 1), np.float32)},
        {"indices": np.zeros(12, np.int64)},
        {"more": np.zeros(12, np.int64)},
        {"values": np.full(12, np.nan, np.float16)},
    ],
)
def test_other_forms_are_refused(tmp_path: Path, bundle: Bundle, tensors: dict) -> None:
    metadata = {
        "format": "seedtune-values",
        "bundle_sha256": bundle.sha256,
        "step": "7",
        "float32_sha256": "0" * 64,
    }
    sound = {"values": np.array(bundle.values), "indices": np.array(bundle.indices)}
    (tmp_path / "v").write_bytes(save({**sound, **tensors}, metadata))
    with pytest.raises(BundleError, match="v: "):
        load_values(tmp_path / "v", bundle)


def test_a_huge_file_is_refused_unread(tmp_path: Path, bundle: Bundle) -> None:
    with open(tmp_path / "v", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="has 1099511627776 bytes, more than any values"):
        load_values(tmp_path / "v", bundle)


@pytest.mark.parametrize("header", [b"[" * 5000, b"{}", b"\xff", json.dumps([1]).encode()])
def test_crafted_headers_are_refused(tmp_path: Path, bundle: Bundle, header: bytes) -> None:
    (tmp_path / "v").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleError, match="not a values file, or damaged"):
        load_values(tmp_path / "v", bundle)
