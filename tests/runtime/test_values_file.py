"""Exported values load to the bit, or are refused: damaged, of another bundle, or no values."""

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save
from seedtune.runtime.errors import BundleError, TuningError
from seedtune.runtime.scoring import values_file
from seedtune.runtime.scoring.answer_head import AnswerHead
from seedtune.runtime.scoring.parts import kinds_of
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values, load_values
from tiny_bundle import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "b")


@pytest.fixture(params=[False, True])
def values(request, bundle):
    """Tuned values, without and with an answer head."""
    rng = np.random.default_rng(0)
    tuned = bundle.values.astype(np.float32) + 0.25
    own = rng.standard_normal(7).astype(np.float32)
    return Values(tuned, AnswerHead(("spam", "ham"), 2, own) if request.param else None)


def loaded(file, bundle):
    return load_values(file, bundle, kinds_of(bundle))


def expected(values):
    return Values(values.sensitive.astype(np.float16).astype(np.float32), values.part).sha256


def test_a_flipped_bit_of_every_byte_is_refused(tmp_path, bundle, values):
    file = tmp_path / "v.safetensors"
    export_values(file, values, bundle, step=7)
    assert loaded(file, bundle).sha256 == expected(values)
    data = file.read_bytes()
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 7]) + data[at + 1 :])
        with pytest.raises(BundleError) as caught:
            loaded(file, bundle)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_equal_values_are_equal_bytes(tmp_path, bundle, values):
    file, written = tmp_path / "v.safetensors", set()
    for _ in range(20):
        export_values(file, values, bundle, step=7)
        written.add(file.read_bytes())
    assert len(written) == 1
    with safe_open(file, "numpy") as opened:
        assert opened.metadata()["step"] == "7"
        assert (opened.get_tensor("values") == values.sensitive.astype(np.float16)).all()


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, bundle, values):
    with pytest.raises(BundleError, match="cannot be written"):
        export_values(tmp_path / "none" / "v", values, bundle, step=0)
    values.sensitive[3] = 1e6
    with pytest.raises(TuningError, match=r"value 3 is 1e\+06, beyond float16"):
        export_values(tmp_path / "v", values, bundle, step=7)
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def test_values_of_another_bundle_are_refused(tmp_path, bundle):
    other = write_tiny_bundle(tmp_path / "c", program=b"another model, the same places")
    export_values(tmp_path / "v", Values(bundle.values.astype(np.float32)), bundle, step=7)
    with pytest.raises(BundleError, match=rf"v: holds values of bundle {bundle.sha256[:12]}\.\.\."):
        loaded(tmp_path / "v", other)


def test_a_file_of_other_metadata_is_refused(tmp_path, bundle, values):
    file = tmp_path / "v"
    export_values(file, values, bundle, step=7)
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    tensors = load(file.read_bytes())
    for change in (
        {"format": "other"},
        {"bundle_sha256": "0" * 64},
        {"step": "-1"},
        {"step": "8"},
        {"content_sha256": "0" * 64},
        {"content_sha255": metadata["content_sha256"]},
    ):
        changed = {**metadata, **change}
        if "content_sha255" in change:
            del changed["content_sha256"]
        file.write_bytes(save(tensors, changed))
        with pytest.raises(BundleError):
            loaded(file, bundle)
    file.write_bytes(save(tensors))
    with pytest.raises(BundleError, match="__metadata__ is missing"):
        loaded(file, bundle)
    shutil.copy(bundle.path / "values.safetensors", file)
    with pytest.raises(BundleError, match="not a values file"):
        loaded(file, bundle)


def test_a_part_keeps_its_labels_and_is_refused_where_it_makes_no_sense(tmp_path, bundle):
    file, sensitive = tmp_path / "v", bundle.values.astype(np.float32)
    head = AnswerHead(("Zeta", "10", " a"), 2, np.arange(10, dtype=np.float32))
    export_values(file, Values(sensitive, head), bundle, step=7)
    assert loaded(file, bundle).part.labels == ("Zeta", "10", " a")
    with pytest.raises(
        BundleError, match="v: its part makes no sense here: the bundle has nothing"
    ):
        load_values(file, bundle, {})
    for wrong, message in (
        (AnswerHead(("one",), 2, head.own[:4]), "labels must name two or more"),
        (AnswerHead(("a", "b"), 2, head.own), "10 weights of an answer head, not 7"),
    ):
        export_values(file, Values(sensitive, wrong), bundle, step=7)
        with pytest.raises(BundleError, match=f"v: its part makes no sense here: .*{message}"):
            loaded(file, bundle)


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
def test_other_forms_are_refused(tmp_path, bundle, tensors):
    metadata = {
        "format": "seedtune-values",
        "bundle_sha256": bundle.sha256,
        "step": "7",
        "float32_sha256": "0" * 64,
        "part": ("own" in tensors and '{"kind": "answer-head", "labels": [], "width": 1}') or "",
    }
    sound = {"values": np.array(bundle.values), "indices": np.array(bundle.indices)}
    found = {**sound, **tensors}
    metadata["content_sha256"] = values_file._content_sha256(found, metadata)
    (tmp_path / "v").write_bytes(save(found, metadata))
    with pytest.raises(BundleError, match="v: "):
        loaded(tmp_path / "v", bundle)


def test_a_huge_file_is_refused_unread(tmp_path, bundle):
    with open(tmp_path / "v", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="has 1099511627776 bytes, more than any values"):
        loaded(tmp_path / "v", bundle)


@pytest.mark.parametrize("header", [b"[" * 5000, b"{}", b"\xff", json.dumps([1]).encode()])
def test_crafted_headers_are_refused(tmp_path, bundle, header):
    (tmp_path / "v").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleError, match="not a values file, or damaged"):
        loaded(tmp_path / "v", bundle)
