"""Bundles open whole or are refused with the part's name; writing never harms what was there."""

import dataclasses
import json
import os
import re
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from faults import read_only
from seedtune.runtime import files
from seedtune.runtime.bundle import (
    Adapter,
    Bounds,
    Contents,
    Layer,
    Program,
    checked_file,
    open_bundle,
    pack_bundle,
    write_bundle,
)
from seedtune.runtime.bundle.manifest import manifest_digest
from seedtune.runtime.bundle.parts import vocabulary_of
from seedtune.runtime.errors import BundleError
from seedtune.runtime.model import open_model
from tiny_bundle import BOUNDS, LAYERS, PROGRAM, TASK, bundle_parts, with_task, write_tiny_bundle

PARTS = ("manifest.json", "program.pte", "values.safetensors", "tokenizer.json")


def same(left, right):
    return (
        left.sha256 == right.sha256
        and left.manifest == right.manifest
        and left.values.tobytes() == right.values.tobytes()
        and left.indices.tobytes() == right.indices.tobytes()
        and left.tokenizer().to_str() == right.tokenizer().to_str()
        and left.program_path.read_bytes() == right.program_path.read_bytes()
    )


def resigned(folder, change):
    """Change the manifest and make its own hash fit again, as a faulty writer would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["sha256"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_was_written_is_what_opens(tmp_path):
    parts = bundle_parts()
    written = write_bundle(tmp_path / "b", Contents(**parts))
    opened = open_bundle(tmp_path / "b")
    assert same(written, opened)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted(PARTS)
    assert opened.path == tmp_path / "b"
    assert opened.K == 12
    assert opened.bounds == BOUNDS
    assert opened.layers == LAYERS
    assert opened.task == TASK
    assert opened.pad_id == 0
    assert opened.values.dtype == np.float16
    assert np.array_equal(opened.values, parts["values"])
    assert np.array_equal(opened.indices, parts["indices"])
    assert opened.program_path.read_bytes() == parts["files"]["program.pte"]
    assert opened.programs == (PROGRAM,)
    assert opened.tokenizer().encode("the film").ids


@pytest.mark.parametrize("blocks", [[], [1], [1, 2]])
@pytest.mark.parametrize("means", [[], [2]])
def test_hidden_states_stand_side_by_side(tmp_path, blocks, means):
    width = 8 * len(blocks + means)
    bundle = write_tiny_bundle(tmp_path / "b", hidden_blocks=blocks, mean_blocks=means)
    assert bundle.hidden_width == open_bundle(tmp_path / "b").hidden_width == width
    for written in (bundle, with_task(bundle, tmp_path / "c", TASK)):
        assert (list(written.hidden_blocks), list(written.mean_blocks)) == (blocks, means)


def test_the_adapter_reads_the_first_of_the_states(tmp_path):
    adapter = Adapter(6, (1,))
    blocks = {"hidden_blocks": [1, 2], "mean_blocks": [1]}
    bundle = write_tiny_bundle(tmp_path / "b", adapter=adapter, **blocks)
    changed = with_task(bundle, tmp_path / "c", TASK)
    for each in (bundle, open_bundle(tmp_path / "b"), changed):
        assert (each.adapter, each.adapter_shape) == (adapter, (6, 8))
    assert write_tiny_bundle(tmp_path / "d", **blocks).adapter_shape is None
    for bad, message in (
        ({"blocks": [2]}, r"adapter.blocks is \[2\], must be the first of the hidden blocks"),
        ({"blocks": []}, "adapter.blocks is"),
        ({"blocks": [True]}, "adapter.blocks"),
        ({"width": 0}, "adapter.width"),
        ({"width": None}, "adapter.width"),
    ):
        write_tiny_bundle(tmp_path / "b", adapter=adapter, **blocks)
        resigned(tmp_path / "b", lambda m, bad=bad: m["adapter"].update(bad))
        with pytest.raises(BundleError, match=message):
            open_bundle(tmp_path / "b")


def test_several_programs_share_files(tmp_path):
    """And go through the one-file form and a change of task."""
    programs = [
        PROGRAM,
        Program("onnx", ("model.onnx", "weights.safetensors"), "float32", {"score": {}}),
        Program("torch", ("weights.safetensors",), "bf16", {"score": {}, "other": {"rows": 1}}),
    ]
    files: dict[str, bytes | Path] = {
        "program.pte": b"one",
        "model.onnx": b"two",
        "weights.safetensors": b"shared",
    }
    bundle = write_tiny_bundle(tmp_path / "b", programs=programs, files=files)
    assert bundle.programs == tuple(programs)
    assert bundle.program("torch") == programs[2] and bundle.program("coreml") is None
    pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    packed = open_bundle(tmp_path / "b.seedtune", cache=tmp_path / "cache")
    changed = with_task(packed, tmp_path / "c", {**TASK, "template": "{text} was"})
    for each in (packed, changed):
        assert each.programs == bundle.programs
        assert {name: (each.path / name).read_bytes() for name in files} == files
    (tmp_path / "c" / "weights.safetensors").write_bytes(b"sharef")
    with pytest.raises(BundleError, match=r"weights.safetensors: altered"):
        open_bundle(tmp_path / "c")


def test_the_exported_values_cannot_be_written_to(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    with pytest.raises(ValueError, match="read-only"):
        bundle.values[0] = 1


def test_identity_covers_every_part(tmp_path):
    base = write_tiny_bundle(tmp_path / "b")
    assert write_tiny_bundle(tmp_path / "again").sha256 == base.sha256
    other = base.values.copy()
    other[3] += 1
    assert write_tiny_bundle(tmp_path / "c", values=other).sha256 != base.sha256
    assert write_tiny_bundle(tmp_path / "d", program=b"x").sha256 != base.sha256
    assert write_tiny_bundle(tmp_path / "e", task=None).sha256 != base.sha256


@pytest.mark.parametrize("part", PARTS)
def test_missing_truncated_and_altered_parts_are_named(tmp_path, part):
    write_tiny_bundle(tmp_path / "b")
    file = tmp_path / "b" / part
    data = file.read_bytes()
    for change in (data[:-3], b"", data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        file.write_bytes(change)
        with pytest.raises(BundleError, match=part):
            open_bundle(tmp_path / "b")
    file.unlink()
    with pytest.raises(BundleError, match=f"{part}: cannot be read: No such file"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize("packed", [False, True])
def test_another_bundle_than_asked_for_is_refused_by_its_manifest_alone(
    tmp_path, packed, monkeypatch
):
    wanted, other = (
        write_tiny_bundle(tmp_path / name, program=name.encode()) for name in ("one", "two")
    )
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    path = other.path
    if packed:
        path = pack_bundle(path, tmp_path / "two.seedtune")
    assert open_bundle(path, sha256=other.sha256.upper()).sha256 == other.sha256
    assert open_model(path, sha256=other.sha256).bundle.sha256 == other.sha256
    for name in ("parse_values", "parse_tokenizer", "check_file"):
        monkeypatch.setattr(f"seedtune.runtime.bundle.bundle.{name}", None)
    monkeypatch.setattr("seedtune.runtime.bundle.archive._check_part", None)
    for opening in (open_bundle, open_model):
        message = f"{path}: is the bundle {other.sha256}, not {wanted.sha256}"
        with pytest.raises(BundleError, match=message):
            opening(path, sha256=wanted.sha256)
    with pytest.raises(BundleError, match=f"not {wanted.sha256}"):
        open_model(other, sha256=wanted.sha256)
    with pytest.raises(BundleError, match="must be the bundle's own 64 hexadecimal digits"):
        open_bundle(path, sha256=wanted.sha256[:12])


def test_no_bundle_there(tmp_path):
    with pytest.raises(BundleError, match="no such bundle"):
        open_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("version", [1, 2, 7, 9, True, 8.0, "8", None])
def test_another_version_is_refused_by_name(tmp_path, version):
    write_tiny_bundle(tmp_path / "b")
    resigned(tmp_path / "b", lambda m: m.update(version=version))
    told = rf"is of bundle version {version!r}, this seedtune reads 8; export the model again"
    with pytest.raises(BundleError, match=told):
        open_bundle(tmp_path / "b")


def test_another_format_is_refused(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    resigned(tmp_path / "b", lambda m: m.update(format="zip"))
    with pytest.raises(BundleError, match="not a seedtune bundle"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["layers"][2].update(count=6), "add up to 11"),
        (lambda m: m["layers"][0].update(offset=1), r"layers\[0\] \(a\): offset 1"),
        (lambda m: m["layers"][1].update(name="a"), "'a' is listed twice"),
        (lambda m: m["layers"][0].update(shape=[4]), r"layers\[0\].shape"),
        (lambda m: m["layers"][0].update(shape=[1, 3]), r"layers\[0\] \(a\)"),
        (lambda m: m["layers"].append(3), r"field layers\[3\] has the wrong type"),
        (lambda m: m["mask"].update(entries=13), "mask.entries is 13"),
        (lambda m: m["mask"].update(fraction=1.5), "mask.fraction"),
        (lambda m: m["mask"].pop("method"), "mask.method is missing"),
        (lambda m: m["bounds"].update(length=1), "bounds.length is 1"),
        (lambda m: m["bounds"].update(rows=0), "bounds.rows is 0"),
        # Of a program with one row: several shorter ones end inside a kernel.
        (lambda m: m["bounds"].update(rows=1), "bounds.rows is 1, .*must be at least 2"),
        (lambda m: m["bounds"].update(probes=2**40), "bounds.probes"),
        (lambda m: m["bounds"].update(rows=2.5), "field bounds.rows has the wrong"),
        (lambda m: m["bounds"].update(candidates=385), "bounds.candidates 385"),
        *[
            (
                lambda m, bad=bad, name=name: m.update({name: bad}),
                rf"{name}(\[0\])? (is {re.escape(repr(bad))}, must be numbers|has the wrong type)",
            )
            for name in ("hidden_blocks", "mean_blocks")
            for bad in (None, 1, {}, [0], [1, 3], [-1], ["1"], [1.0], [True])
        ],
        (lambda m: m.update(programs=[]), "programs is empty"),
        (lambda m: m["programs"].append(3), r"field programs\[1\] has the wrong type"),
        (lambda m: m["programs"].append(m["programs"][0]), "'executorch' is listed twice"),
        (lambda m: m["programs"][0].pop("format"), r"programs\[0\].format is missing"),
        (lambda m: m["programs"][0].update(methods={}), r"programs\[0\].methods.score is missing"),
        (
            lambda m: m["programs"][0].update(methods={"score": 1}),
            r"methods.score has the wrong type",
        ),
        (
            lambda m: m["programs"][0]["methods"].update(
                generate={"chunk": 8, "context": 32, "cache": [[1, 8]], "columns": 5}
            ),
            r"programs\[0\].methods lacks 'columns', which writing takes",
        ),
        *[
            (
                lambda m, cache=cache: m["programs"][0]["methods"].update(behind=cache),
                rf"programs\[0\].methods.behind.cache{told}",
            )
            for cache, told in (
                ({}, " is missing"),
                ({"cache": []}, r" is \[\], must be \[heads, width\] of each block"),
                ({"cache": [[2, 8], [2]]}, r" is \[\[2, 8\], \[2\]\], must be"),
                ({"cache": [[2, 0]]}, r"\[0\]\[1\] is 0, must be in 1"),
            )
        ],
        *[
            (
                lambda m, bad=bad: m["programs"][0].update(files=bad),
                r"programs\[0\].files(\[\d\])? (is|has) ",
            )
            for bad in (
                [],
                [3],
                ["../program.pte"],
                ["/tmp/program.pte"],
                ["a/b.pte"],
                ["a\\b.pte"],
                ["Program.pte"],
                [".pte"],
                ["program.pte\n"],
                ["program.so"],
                ["manifest.json"],
                ["values.safetensors"],
                ["program.pte", "tokenizer.json"],
            )
        ],
        (lambda m: m["programs"][0].update(files=["other.pte"]), "parts are"),
        (lambda m: m["parts"]["program.pte"].pop("bytes"), "parts.program.pte.bytes is missing"),
        (lambda m: m["model"].update(vocab_size=100), "it is another model's tokenizer"),
        (lambda m: m["model"].update(vocab_size=True), "model.vocab_size has the wrong type"),
        (lambda m: m["tokenizer"].update(vocab_size=12), "the manifest says 12"),
        (lambda m: m["tokenizer"].update(pad_id=384), "tokenizer: token 384 lies outside"),
        (lambda m: m["tokenizer"].update(sha256="0"), "tokenizer.sha256"),
        (lambda m: m.pop("parts"), "parts is missing"),
        (lambda m: m["parts"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}), "parts are"),
        (lambda m: m.update(task="sst2"), "task has the wrong type"),
        (lambda m: m["mask"].update(fraction=10**400), "a number is beyond 64 bits"),
        (lambda m: m["model"].update(name="\ud83d"), "half a character"),
        (lambda m: m["model"].update(name="a\x1b[2J"), "model.name is 'a.*must be one line"),
        (lambda m: m["model"].update(vocab_size=2**31), "model.vocab_size is 2147483648"),
        (lambda m: m["parts"]["tokenizer.json"].update(bytes=-1), "bytes is -1"),
        (lambda m: m["parts"]["tokenizer.json"].update(sha256="x"), "must be a SHA-256"),
        (lambda m: m.update(task=json.loads("[" * 100 + "]" * 100)), "JSON nested too deeply"),
    ],
)
def test_manifests_that_are_crafted_or_disagree_with_the_parts_are_refused(
    tmp_path, change, message
):
    write_tiny_bundle(tmp_path / "b")
    resigned(tmp_path / "b", change)
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "b")


def _with(name, index, value):
    array = bundle_parts()[name].copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_with("values", 6, np.nan), "layer b: value 1 is nan"),
        (_with("values", 0, np.inf), "layer a: value 0 is inf"),
        ({"values": bundle_parts()["values"].astype(np.float32)}, "values is float32"),
        ({"indices": bundle_parts()["indices"].astype(np.int32)}, "indices is int32"),
        ({"values": bundle_parts()["values"][:11]}, "mask.entries is 11"),
        ({"indices": bundle_parts()["indices"][:11]}, r"indices has shape \[11\]"),
        (_with("indices", 4, 24), "layer a: an index lies outside 0..23"),
        (_with("indices", 5, -1), "layer b: an index lies outside 0..15"),
        (_with("indices", 1, bundle_parts()["indices"][0]), "layer a: indices must increase"),
        ({"layers": (Layer("none", (2, 2), 0, 0),)}, "mask.entries is 12"),
        ({"tokenizer_json": b"{}"}, "tokenizer.json: not a tokenizer"),
        ({"tokenizer_json": b"\xff"}, "tokenizer.json: not a tokenizer"),
        ({"pad_id": -1}, "tokenizer: token -1 lies outside"),
        ({"bounds": dataclasses.replace(BOUNDS, candidates=999)}, "bounds.candidates 999"),
    ],
)
def test_writing_refuses_what_opening_would(tmp_path, changes, message):
    with pytest.raises(BundleError, match=message) as caught:
        write_tiny_bundle(tmp_path / "b", **changes)
    assert str(tmp_path / "b/") in str(caught.value)  # not the temporary folder's name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0, -3, 2.0, True, None, 2**31])
def test_bounds_must_be_sensible(value):
    with pytest.raises(BundleError, match=r"bounds\.rows"):
        Bounds(probes=2, rows=value, length=32, positions=48, candidates=4)


def test_a_failed_write_leaves_the_old_bundle(tmp_path):
    old = write_tiny_bundle(tmp_path / "b")
    with pytest.raises(BundleError):
        write_tiny_bundle(tmp_path / "b", **_with("values", 2, np.nan))
    assert same(open_bundle(tmp_path / "b"), old)
    new = write_tiny_bundle(tmp_path / "b", program=b"new")
    assert same(open_bundle(tmp_path / "b"), new)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_rename_that_fails_puts_the_old_bundle_back(tmp_path, monkeypatch):
    old = write_tiny_bundle(tmp_path / "b")
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(files, "_swap", lambda first, second: False)
    with pytest.raises(BundleError, match="No space left"):
        write_tiny_bundle(tmp_path / "b", program=b"new")
    assert same(open_bundle(tmp_path / "b"), old)


def test_a_read_only_disk_is_named(tmp_path):
    (tmp_path / "disk").mkdir()
    with (
        read_only(tmp_path / "disk"),
        pytest.raises(BundleError, match=r"disk/b: cannot be written: Read-only"),
    ):
        write_tiny_bundle(tmp_path / "disk" / "b")


def test_one_file_form_opens_to_the_same_bundle(tmp_path):
    folder = write_tiny_bundle(tmp_path / "b")
    pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    pack_bundle(tmp_path / "b", tmp_path / "c.seedtune")
    assert (tmp_path / "b.seedtune").read_bytes() == (tmp_path / "c.seedtune").read_bytes()
    for _ in range(2):  # the second time from the cache
        opened = open_bundle(tmp_path / "b.seedtune", cache=tmp_path / "cache")
        assert same(opened, folder)
    assert opened.path == tmp_path / "cache" / "bundles" / folder.sha256


def test_a_damaged_cache_is_unpacked_again(tmp_path):
    folder = write_tiny_bundle(tmp_path / "b")
    pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    cached = open_bundle(tmp_path / "b.seedtune", cache=tmp_path / "cache").program_path
    cached.write_bytes(b"damaged")
    assert same(open_bundle(tmp_path / "b.seedtune", cache=tmp_path / "cache"), folder)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="set SEEDTUNE_CACHE"):
        open_bundle(tmp_path / "b.seedtune", cache=tmp_path / "file")


def test_a_damaged_bundle_is_not_packed(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    (tmp_path / "b" / "program.pte").write_bytes(b"")
    with pytest.raises(BundleError, match=r"program\.pte"):
        pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    assert not (tmp_path / "b.seedtune").exists()


def _overwrite(file, data):
    file.write_bytes(data)


def _swap(file, data):
    """Another file of the same size and, as far as a program can set them, the same times."""
    status = file.stat()
    other = file.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, file)


class TestTheCheckedFile:
    @pytest.mark.parametrize("change", [_overwrite, _swap])
    @pytest.mark.parametrize("settled", [False, True])
    def test_a_program_that_changed_since_is_refused(self, tmp_path, monkeypatch, change, settled):
        if settled:  # as for a bundle written longer ago, whose times are believed
            monkeypatch.setattr(checked_file, "_SETTLED_NS", -1)
            time.sleep(0.05)
        bundle = write_tiny_bundle(tmp_path / "b")
        bundle = open_bundle(tmp_path / "b")
        assert (bundle._stamps["program.pte"] is not None) == settled
        time.sleep(0.05 if settled else 0)
        data = bundle.program_path.read_bytes()
        change(bundle.program_path, data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"b/program.pte: altered"):
            bundle.checked("program.pte").__enter__()
        change(bundle.program_path, data)  # touched, but the same again
        with bundle.checked("program.pte") as opened:
            assert opened.read_bytes() == data
        bundle.program_path.unlink()
        with pytest.raises(BundleError, match=r"program\.pte: cannot be read: No such file"):
            bundle.checked("program.pte").__enter__()

    def test_what_was_checked_stays_open(self, tmp_path):
        bundle = write_tiny_bundle(tmp_path / "b")
        data = bundle.program_path.read_bytes()
        with bundle.checked("program.pte") as opened:
            _swap(bundle.program_path, bytes(len(data)))
            assert opened.read_bytes() == data

    def test_an_unchanged_program_is_not_hashed_again(self, tmp_path, monkeypatch):
        write_tiny_bundle(tmp_path / "b")
        monkeypatch.setattr(checked_file, "_SETTLED_NS", -1)
        bundle = open_bundle(tmp_path / "b")
        monkeypatch.setattr(checked_file, "_check", None)
        with bundle.checked("program.pte") as opened:
            assert opened.read_bytes() == bundle.program_path.read_bytes()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "sub/../../evil", "program.pte"])
def test_hostile_archives_write_nothing_outside(tmp_path, name):
    write_tiny_bundle(tmp_path / "b")
    file = pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile remarks that a name stands there twice
        archive.writestr(name, "evil")
    with pytest.raises(BundleError, match="unexpected entry"):
        open_bundle(file, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_compressed_archive_is_refused(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "z.seedtune", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in PARTS:
            archive.write(tmp_path / "b" / name, name)
    with pytest.raises(BundleError, match="compressed"):
        open_bundle(tmp_path / "z.seedtune", cache=tmp_path / "cache")


def test_an_altered_archive_is_refused_even_when_cached(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    file = pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    open_bundle(file, cache=tmp_path / "cache")
    data = file.read_bytes()
    at = data.index((tmp_path / "b" / "program.pte").read_bytes())
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(BundleError, match="altered"):
        open_bundle(file, cache=tmp_path / "cache")


def _tokenizer(change):
    content = json.loads(bundle_parts()["tokenizer_json"])
    change(content)
    return json.dumps(content).encode()


def _prefixed(content):
    content["model"]["vocab"] = {"a": 0, "é": 1, "aé": 2}
    content["model"]["continuing_subword_prefix"] = "x"
    content["model"]["merges"] = [["a", "é"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": ""}),
        lambda t: t["model"].update(continuing_subword_prefix="####"),
        _prefixed,  # the library aborts the process
        lambda t: t.update(
            normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}
        ),
        lambda t: t.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
        lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "q", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        ),
    ],
)
def test_tokenizers_that_panic_are_refused(tmp_path, change):
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a tokenizer file \(") as caught:
        write_tiny_bundle(tmp_path / "b", tokenizer_json=_tokenizer(change))
    assert "\n" not in str(caught.value)


def test_an_archive_is_unpacked_no_further_than_its_manifest_says(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    bomb = tmp_path / "bomb.seedtune"
    with zipfile.ZipFile(bomb, "w") as archive:
        for name in PARTS:
            data = (tmp_path / "b" / name).read_bytes()
            archive.writestr(name, data + bytes(50 << 20) if name == "program.pte" else data)
    with pytest.raises(
        BundleError, match=r"program\.pte has 52429300 bytes, the manifest says 500"
    ):
        open_bundle(bomb, cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "bundles").iterdir()) == []
    with zipfile.ZipFile(bomb, "w") as archive:
        for name in PARTS:
            archive.writestr(name, bytes(20 << 20))
    with pytest.raises(BundleError, match=r"manifest\.json has 20971520 bytes"):
        open_bundle(bomb, cache=tmp_path / "cache")


def test_a_vocabulary_ends_behind_its_largest_token():
    from tokenizers import Tokenizer, models

    for vocabulary, end in (
        ({"a": 0, "b": 1, "c": 2}, 3),
        ({"a": 0, "b": 1, "c": 7}, 8),
        ({"a": 1, "b": 2}, 3),
        ({"a": 0, "b": 1, "c": 1}, 2),
        ({}, 0),
    ):
        found = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
        assert vocabulary_of(found) == end, vocabulary
    found = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    found.add_tokens(["c", "b"])
    assert vocabulary_of(found) == 3

    class Whole:
        """Cannot list its tokens, which takes memory."""

        def get_vocab_size(self, with_added_tokens):
            return 3

        def id_to_token(self, token):
            return "abc"[token]

    assert vocabulary_of(Whole()) == 3
