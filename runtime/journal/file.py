"""Journals as files: reading, appending, durability, and what to do when a disk says no.

The format is ``format.py``'s. Reading never changes a file. Opening for writing takes the
run's lock and cuts a torn tail back to the last whole record.

Durability. Each record is one ``os.write`` to a file opened for appending, so a killed process
loses nothing that it had recorded: the page cache outlives it. Only a power failure or a kernel
crash can take records that were not yet synced: at most ``SYNC_SECONDS`` of steps, as what is not
yet synced took less than that to compute.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import JournalError
from ..files import BINARY, replace_file
from ..process_lock import is_at
from .format import (
    Encoder,
    Header,
    JournalDamage,
    Placed,
    Record,
    decode_header,
    decode_records,
)
from .lock import RunLock
from .run_folder import JOURNAL_FILE, tidy_if_possible

SYNC_SECONDS = 1.0
"""No record stays off the disk (``fsync``) for longer, while steps keep their pace. Closing,
pausing and evaluating always sync."""


@dataclass(frozen=True)
class Journal:
    """A journal as read: its header, its whole records, and what was torn off its end."""

    path: Path
    header: Header
    records: tuple[Placed, ...]
    header_end: int
    """Bytes of the header: where the records start."""
    header_crc: int
    torn_bytes: int
    """Bytes behind the last whole record, which reading ignores."""
    damage: JournalDamage | None = None
    """What ends the records, where reading was asked to tolerate it."""

    @property
    def end(self) -> int:
        """Bytes up to the last whole record."""
        return self.records[-1].end if self.records else self.header_end

    @property
    def crc(self) -> int:
        """CRC-32 after the last whole record."""
        return self.records[-1].crc if self.records else self.header_crc


def journal_path(path: Path | str) -> Path:
    """The journal meant by a run folder or by a journal file."""
    path = Path(path)
    return path / JOURNAL_FILE if os.path.isdir(path) else path


def read_journal(path: Path | str, *, until: int | None = None, tolerate: bool = False) -> Journal:
    """Read and check a journal without changing it.

    Args:
        path: a run folder or a journal file.
        until: stop before the step after this many, so that damage behind it does not matter.
        tolerate: give the records before any damage, and the damage as ``Journal.damage``.

    Raises:
        JournalDamage: damaged before its tail.
        JournalError: not there, unreadable, damaged in its header, or newer.
    """
    path = journal_path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: cannot be read ({error.strerror})") from None
    header, start, crc = decode_header(data, str(path))
    records: list[Placed] = []
    steps, torn = header.first_step, True
    damage: JournalDamage | None = None
    try:
        for placed in decode_records(data, header, start, crc, str(path)):
            if placed.is_step:
                steps += 1
                if until is not None and steps > until:
                    torn = False
                    break
            records.append(placed)
    except JournalDamage as error:
        torn = False
        if tolerate:
            damage = error
        elif until is None or steps < until:
            raise
    end = records[-1].end if records else start
    left = len(data) - end if torn else 0
    return Journal(path, header, tuple(records), start, crc, left, damage)


class JournalWriter:
    """Appends records to a run folder's journal; holds the run's lock until closed.

    After a failed write the file ends at its last whole record and the writer refuses more.
    """

    def __init__(self, journal: Journal, lock: RunLock) -> None:
        self.path = journal.path
        self.cut_bytes = journal.torn_bytes
        """Bytes of a torn tail that opening cut off."""
        self._lock = lock
        self._encoder = Encoder(
            journal.header.scalar_count, journal.crc, signs=journal.header.signs
        )
        self._end = journal.end
        self._failed = False
        self._unsynced = 0
        self._last_sync = self._last_record = time.monotonic()
        self._process = os.getpid()
        self._fd = -1
        lock.cover_journal()
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | BINARY)
            if self.cut_bytes:
                os.ftruncate(self._fd, self._end)
                os.fsync(self._fd)
        except OSError as error:
            if self._fd >= 0:
                os.close(self._fd)
            raise self._error(error) from None

    @classmethod
    def create(
        cls, folder: Path | str, header: Header, *, records: Iterable[Record] = ()
    ) -> "JournalWriter":
        """Start a run: the folder is made, the journal appears whole with its header.

        Only this user may read either: a journal can hold numbers of single examples.

        Raises:
            JournalError: the folder has a journal, another writer, or cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"{folder}: cannot be made ({error.strerror})") from None
        lock = RunLock(folder)
        try:
            path = folder / JOURNAL_FILE
            if os.path.exists(path):
                raise JournalError(f"{path}: there is a run already; resume it or choose a folder")
            write_journal(path, header, records)
            return cls(read_journal(path), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: Path | str) -> "tuple[JournalWriter, Journal]":
        """Open a run to append to it, and what it holds so far. Cuts a torn tail.

        Raises:
            JournalError: no journal, damaged, newer, another writer, or not writable.
        """
        folder = Path(folder)
        if not os.path.isfile(folder / JOURNAL_FILE):
            raise JournalError(f"{folder / JOURNAL_FILE}: no such journal")
        lock = RunLock(folder)
        try:
            journal = read_journal(folder)
            tidy_if_possible(folder, journal.header.snapshot_file)
            return cls(journal, lock), journal
        except BaseException:
            lock.release()
            raise

    def append(self, record: Record) -> None:
        """Write one record. It counts once this returns; call ``sync_if_due`` afterwards.

        Raises:
            JournalError: the disk is full or refuses; the file was cut to its last whole record.
        """
        if self._failed or self._fd < 0:
            raise JournalError(f"{self.path}: closed, or failed before; open the run again")
        if os.getpid() != self._process:
            raise JournalError(
                f"{self.path}: was opened by process {self._process}, this one was forked from it; "
                "go on there, or open the run again once it has ended"
            )
        data = self._encoder.encode(record)
        try:
            # A full disk takes a part first and complains at the next write.
            done = os.write(self._fd, data)
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            self._failed = True
            with contextlib.suppress(OSError):  # else the next opening cuts the torn tail
                os.ftruncate(self._fd, self._end)
            raise self._error(error) from None
        self._end += len(data)
        self._unsynced += 1

    def sync_if_due(self) -> None:
        """Sync if the last time was ``SYNC_SECONDS`` ago."""
        if not self._unsynced:
            return
        now = time.monotonic()
        gap, self._last_record = now - self._last_record, now
        # Slow steps: do not leave this record waiting for a next one that comes too late.
        if now - self._last_sync + gap >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force everything recorded so far to the disk.

        Raises:
            JournalError: the disk refuses, or the journal has been deleted or replaced meanwhile.
        """
        if self._unsynced:
            if not is_at(self._fd, self.path):
                self._failed = True
                raise JournalError(
                    f"{self.path}: was deleted or replaced while its run went on, which is lost "
                    "from there; start again from a copy or in another folder"
                )
            try:
                os.fsync(self._fd)
            except OSError as error:
                self._failed = True
                raise self._error(error) from None
            self._unsynced = 0
        self._last_sync = time.monotonic()

    def close(self) -> None:
        """Sync and let the next writer in. Calling it again does nothing."""
        if self._fd < 0:
            return
        try:
            if not self._failed and os.getpid() == self._process:
                self.sync()
        finally:
            os.close(self._fd)
            self._fd = -1
            self._lock.release()

    def _error(self, error: OSError) -> JournalError:
        return JournalError(
            f"{self.path}: cannot be written ({error.strerror}); it is whole up to byte "
            f"{self._end}: make room or restore the access, then resume"
        )


def write_journal(path: Path, header: Header, records: Iterable[Record]) -> None:
    """Write a whole journal so that ``path`` holds all of it or what it held before.

    Raises:
        JournalError: the folder cannot be written; ``path`` is as it was.
    """
    head = header.encode()
    crc = int.from_bytes(head[-4:], "little")
    encoder = Encoder(header.scalar_count, crc, signs=header.signs)
    data = head + b"".join(map(encoder.encode, records))
    replace_journal_file(path, data)


def replace_journal_file(path: Path, data: bytes) -> None:
    """``replace_file`` for a file of a run folder, which only this user may read.

    Raises:
        JournalError: the folder cannot be written; ``path`` is as it was.
    """
    try:
        replace_file(path, data, private=True)
    except OSError as error:
        raise JournalError(f"{path}: cannot be written ({error.strerror})") from None
