"""Whoever waits for the check of a bundle hears of every byte; what they raise is theirs."""

import itertools
import os

import pytest
from seedtune.runtime.bundle import open_bundle, pack_bundle
from seedtune.runtime.errors import BundleError
from seedtune.runtime.model import open_model
from tiny_bundle import tiny_tokenizer, write_tiny_bundle

MIB = 1 << 20
PROGRAM = os.urandom(5 * MIB // 2)


@pytest.fixture
def folder(tmp_path):
    """A part that is mapped, and one that is read, take more than a MiB each."""
    tokenizer = tiny_tokenizer().to_str().encode() + b" " * (3 * MIB // 2)
    return write_tiny_bundle(tmp_path / "b", program=PROGRAM, tokenizer_json=tokenizer).path


@pytest.fixture
def archive(folder):
    return pack_bundle(folder, folder.with_suffix(".seedtune"))


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.name != "manifest.json")


def hearing(into):
    return lambda done, total: into.append((done, total))


def check_steps(told, total):
    """From 0 to the total, each byte once, in pieces of a MiB at most."""
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert {whole for _, whole in told} == {total}
    done = [each for each, _ in told]
    assert all(0 <= after - before <= MIB for before, after in itertools.pairwise(done))


@pytest.mark.parametrize("opened_by", [open_bundle, open_model])
def test_a_folder_is_heard_of_byte_by_byte(folder, opened_by):
    told: list[tuple[int, int]] = []
    opened_by(folder, progress=hearing(told))
    check_steps(told, size_of(folder))
    assert len(told) >= 1 + 3 + 2 + 1  # the program's pieces, the tokenizer's, and a small part


def test_an_archive_is_checked_packed_and_unpacked(folder, archive, tmp_path):
    counts = []
    for _ in range(2):  # the second time it is unpacked already
        told: list[tuple[int, int]] = []
        opened = open_bundle(archive, cache=tmp_path / "cache", progress=hearing(told))
        check_steps(told, 2 * size_of(folder))
        counts.append(len(told))
    assert counts[0] == counts[1]
    damaged = bytearray(PROGRAM)
    damaged[-1] ^= 1
    opened.program_path.write_bytes(damaged)
    told = []
    open_bundle(archive, cache=tmp_path / "cache", progress=hearing(told))
    again = told.index((0, 2 * size_of(folder)), 1)  # what was unpacked was no good
    assert told[again - 1][0] > size_of(folder)
    check_steps(told[again:], 2 * size_of(folder))


def test_a_damaged_part_ends_it_before_the_end(folder):
    (folder / "values.safetensors").write_bytes(b"x")
    told: list[tuple[int, int]] = []
    with pytest.raises(BundleError, match=r"values\.safetensors"):
        open_bundle(folder, progress=hearing(told))
    assert told and told[-1][0] < told[-1][1]


@pytest.mark.parametrize("error", [OSError("closed"), ValueError("no"), BundleError("own")])
@pytest.mark.parametrize("packed", [False, True])
def test_what_the_callback_raises_is_not_taken_for_damage(folder, archive, tmp_path, error, packed):
    cache = tmp_path / "cache"

    def stop(after):
        def progress(done, total):
            if done >= after:
                raise error

        return progress

    for after in (0, MIB, size_of(folder), *([size_of(folder) + MIB] if packed else [])):
        with pytest.raises(type(error)) as raised:
            open_bundle(archive if packed else folder, cache=cache, progress=stop(after))
        assert raised.value is error
        if after < size_of(folder):  # nothing half unpacked remains
            assert not list(cache.glob("bundles/*"))
    assert open_bundle(archive, cache=cache).program_path.read_bytes() == PROGRAM
