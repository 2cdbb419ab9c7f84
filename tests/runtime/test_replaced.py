"""Bundles and archives under kills at every step: old or new, and nothing left over for long."""

import errno
import os
import signal
from pathlib import Path

import pytest
from faults import killed_at_call, run_and_kill
from seedtune.runtime import files
from seedtune.runtime.bundle import open_bundle, pack_bundle
from seedtune.runtime.bundle.archive import unpack_archive
from seedtune.runtime.errors import BundleError
from seedtune.runtime.files import (
    clean_up,
    kept_folder,
    replace_file,
    replace_folder,
    workplace,
)
from tiny_bundle import write_tiny_bundle


@pytest.fixture(params=["swap", "two renames"])
def way(request, monkeypatch):
    """Both ways of replacing a folder; the second is that of systems that cannot swap."""
    if request.param != "swap":
        monkeypatch.setattr(files, "_swap", lambda first, second: False)


def every_kill(work):
    """Kills of ``work`` at each of its calls, yielded to the loop's body; then it runs whole."""
    for before in (True, False):
        number = 0
        while killed_at_call(lambda: work(), number, before=before):
            number += 1
            yield number
    work()


def test_replacing_a_bundle_killed_at_every_call(tmp_path, way):
    folder = tmp_path / "b"
    known = {write_tiny_bundle(folder, program=bytes([n]) * 100).sha256 for n in range(2)}
    kills = 0

    def write():
        write_tiny_bundle(folder, program=bytes([kills % 2]) * 100)

    for _ in every_kill(write):
        kills += 1
        assert open_bundle(folder).sha256 in known, kills
    assert kills > 16
    assert open_bundle(folder).sha256 in known
    assert os.listdir(tmp_path) == ["b"]


def test_packing_killed_at_every_call(tmp_path):
    sha256 = write_tiny_bundle(tmp_path / "b").sha256
    file = tmp_path / "b.seedtune"
    for _ in every_kill(lambda: pack_bundle(tmp_path / "b", file)):
        if file.exists():
            assert open_bundle(file, cache=tmp_path / "cache").sha256 == sha256
    assert sorted(os.listdir(tmp_path)) == ["b", "b.seedtune", "cache"]


def test_unpacking_killed_at_every_call(tmp_path, way):
    sha256 = write_tiny_bundle(tmp_path / "b").sha256
    file = pack_bundle(tmp_path / "b", tmp_path / "b.seedtune")
    cache = tmp_path / "cache"

    def unpack():
        if (cache / "bundles" / sha256).exists():
            os.rename(cache / "bundles" / sha256, cache / "away")
            os.system(f"rm -r {cache / 'away'}")
        return unpack_archive(file, cache)

    for _ in every_kill(unpack):
        if (cache / "bundles" / sha256).exists():
            assert open_bundle(cache / "bundles" / sha256).sha256 == sha256
        os.system(f"rm -rf {cache / 'away'}")
    assert os.listdir(cache / "bundles") == [sha256]


def test_opening_puts_back_what_a_killed_process_had_moved_away(tmp_path):
    old = write_tiny_bundle(tmp_path / "b")

    def move():
        with workplace(tmp_path / "b") as work:
            os.rename(tmp_path / "b", work / "replaced")
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_and_kill(move, None)
    assert not (tmp_path / "b").exists()
    assert open_bundle(tmp_path / "b").sha256 == old.sha256
    assert os.listdir(tmp_path) == ["b"]


def test_the_workplace_of_a_process_that_lives_stays(tmp_path):
    with workplace(tmp_path / "b") as work:
        (work / "file").write_text("mine")
        clean_up(tmp_path)
        with workplace(tmp_path / "b") as other:
            assert other != work
        assert (work / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == []


def test_names_of_others_are_left_alone(tmp_path):
    for name in (".b.seedtune", ".b.12345678.work", "b.seedtune-work"):
        (tmp_path / name).mkdir()
    before = sorted(os.listdir(tmp_path))
    clean_up(tmp_path)
    with workplace(tmp_path / "b"):
        pass
    assert sorted(os.listdir(tmp_path)) == before


def test_files_are_synced_and_then_their_parents(tmp_path, monkeypatch):
    synced: list[tuple[int, int]] = []
    real = os.fsync

    def fsync(descriptor):
        status = os.fstat(descriptor)
        synced.append((status.st_dev, status.st_ino))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    parent = os.stat(tmp_path)
    for number, write in enumerate(
        (
            lambda: write_tiny_bundle(tmp_path / "b"),
            lambda: write_tiny_bundle(tmp_path / "b", program=b"new"),
            lambda: pack_bundle(tmp_path / "b", tmp_path / "b.seedtune"),
        )
    ):
        synced.clear()
        made = write()
        assert synced[-1] == (parent.st_dev, parent.st_ino), number
        for file in [made] if isinstance(made, Path) else made.path.iterdir():
            own = file.stat()
            assert (own.st_dev, own.st_ino) in synced[:-1], file


def test_a_swap_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    old = write_tiny_bundle(tmp_path / "b")

    def refuse(first, second):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(second))

    monkeypatch.setattr(files, "_swap", refuse)
    with pytest.raises(BundleError, match="b: cannot be written: Input/output error"):
        write_tiny_bundle(tmp_path / "b", program=b"new")
    assert open_bundle(tmp_path / "b").sha256 == old.sha256
    assert os.listdir(tmp_path) == ["b"]


def test_a_folder_is_swapped_in_one_step_here(tmp_path):
    for name in ("new", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "b")
    assert (tmp_path / "b" / "which").read_text() == "new"
    if os.uname().sysname == "Linux":
        assert (tmp_path / "new" / "which").read_text() == "b"


def test_a_kept_folder_is_made_once_and_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "cache" / "kept"

    def fails(content, scratch):
        (content / "half").touch()
        raise OSError(errno.ENOSPC, "full")

    def other_was_first(content, scratch):
        (content / "ours").touch()
        kept_folder(folder, lambda content, scratch: (content / "theirs").touch())

    with pytest.raises(OSError, match="full"):
        kept_folder(folder, fails)
    assert not list(folder.parent.iterdir())
    for make in (other_was_first, fails):
        assert kept_folder(folder, make) == folder
        assert [each.name for each in folder.iterdir()] == ["theirs"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("private", [True, False])
def test_a_file_has_the_mode_that_is_wanted(tmp_path, private):
    (tmp_path / "f").write_text("old")
    (tmp_path / "f").chmod(0o644)
    replace_file(tmp_path / "f", b"new", private=private)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == (0o600 if private else 0o644)
    assert os.listdir(tmp_path) == ["f"]


def test_replacing_a_file_killed_at_every_call(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"old")
    kills = 0
    for _ in every_kill(lambda: replace_file(file, b"new")):
        kills += 1
        assert file.read_bytes() in (b"old", b"new")
    assert kills > 10 and os.listdir(tmp_path) == ["f"]


def test_three_processes_write_one_file_and_a_fourth_reads_it(tmp_path):
    """No write fails, whoever looks meets a whole file, and nothing is left."""
    file, times = tmp_path / "f", 100
    whole = [bytes([number]) * 50_000 for number in range(3)]
    file.write_bytes(whole[0])

    def write(data):
        for _ in range(times):
            replace_file(file, data)

    writers = []
    for data in whole:
        writers.append(os.fork())
        if writers[-1] == 0:
            code = 1
            try:
                write(data)
                code = 0
            finally:
                os._exit(code)
    met, ended = set(), []
    while len(ended) < len(writers):
        met.add(file.read_bytes())
        ended += [status for pid, status in (os.waitpid(-1, os.WNOHANG),) if pid]
    assert ended == [0, 0, 0]
    assert met <= set(whole) and len(met) > 1
    assert os.listdir(tmp_path) == ["f"]
