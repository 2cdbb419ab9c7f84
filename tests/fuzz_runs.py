"""Kinds of cases of ``fuzz`` that replay: runs, snapshots and shared files whose checksums hold."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes import FakeEngine, FakeTask, fake_examples, fake_start
from fuzz_odd import EQUAL, SOUND, Case, damage, odd_json, odd_tensors, own_file
from journal_bytes import encoded
from safetensors.numpy import load
from seedtune.runtime.journal.file import Journal, read_journal
from seedtune.runtime.journal.format import (
    Change,
    Encoder,
    End,
    Evaluation,
    Header,
    Note,
    Record,
    Reference,
    Signs,
    Skip,
    Step,
)
from seedtune.runtime.journal.history import GUARD_WINDOW
from seedtune.runtime.journal.operations import receive, share
from seedtune.runtime.journal.run_folder import JOURNAL_FILE
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.state import replay
from seedtune.runtime.tuning.tuner import Tuner
from tiny_run import CARRIED, rates


def run_kinds(folder: Path) -> dict[str, Case]:
    """Journals whose checksums hold, as an attacker writes them, and shared ones on a bad line."""
    start, ran, snapshots = fake_start(24), [], []
    for name in CARRIED:
        journal = _run(folder / "runs" / name, name, 4)
        ran.append((journal.header, [placed.record for placed in journal.records]))
        _run(folder / "long" / name, name, GUARD_WINDOW + 6)
        journal = compact(folder / "long" / name, start)
        assert journal.header.snapshot is not None
        file = journal.path.with_name(journal.header.snapshot["file"])
        snapshots.append((journal, load(file.read_bytes())))
    sha256 = share(folder / "runs" / "two-point", folder / "shared", start).sha256
    shared = (folder / "shared").read_bytes()
    own = own_file(folder)

    def crafted(rng: random.Random) -> tuple[str, Callable[[], str]]:
        head, records = rng.choice(ran)
        records, what = [*records], []
        fields: dict[str, Any] = {"settings": head.settings, "shape": head.shape}
        if rng.random() < 0.5:
            said, text = odd_json(fields, rng)
            what.append(said)
            fields = _lenient(text) or fields
        for _ in range(rng.choice([0, 1, 1, 3])):
            place = rng.randrange(len(records) + 1)
            record = _odd_record(rng, head)
            records[place : place + rng.choice([0, 1])] = [record]
            what.append(f"record {place}: {record}"[:200])

        def read() -> str:
            data = replace(head, **fields).encode()
            crc = int.from_bytes(data[-4:], "little")
            encoder = Encoder(head.scalar_count, crc, signs=head.signs)
            own(JOURNAL_FILE).write_bytes(data + b"".join(map(encoder.encode, records)))
            replay(own(JOURNAL_FILE), start)
            return SOUND

        return "; ".join(what), read

    def snapshot(rng: random.Random) -> tuple[str, Callable[[], str]]:
        journal, tensors = rng.choice(snapshots)
        what, data = odd_tensors(tensors, rng)

        def read() -> str:
            digest = hashlib.sha256(data).hexdigest()
            held = {**journal.header.snapshot, "file": "snapshot", "sha256": digest}
            head = replace(journal.header, snapshot=held)
            own("snapshot").write_bytes(data)
            own(JOURNAL_FILE).write_bytes(encoded(head, (each.record for each in journal.records)))
            _ = replay(own(JOURNAL_FILE), start).best_values
            return SOUND

        return what, read

    def received(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = damage(shared, rng)

        def read() -> str:
            own("shared").write_bytes(bad)
            shutil.rmtree(own("received"), ignore_errors=True)
            return (
                EQUAL
                if receive(own("shared"), own("received"), start).sha256 == sha256
                else ("different")
            )

        return what, read

    return {"crafted run": crafted, "snapshot": snapshot, "shared": received}


def _run(folder: Path, estimator: str, steps: int) -> Journal:
    """A run of the fake model."""
    examples = fake_examples(4 * steps)
    asked = {"steps": steps, "batch_size": 4, "eval_every": steps // 2}
    settings = {**asked, "estimator": estimator, **rates(estimator)}
    engine, task, start = FakeEngine(24), FakeTask(), fake_start(24)
    with Tuner(
        engine, start, task, examples, folder=folder, settings=settings, eval_examples=examples[:4]
    ) as live:
        list(live)
    return read_journal(folder)


def _lenient(text: bytes) -> dict[str, Any] | None:
    """The fields of a header, odd as they are; None where they are not even fields."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and set(found) <= {"settings", "shape"} else None


_FLOATS = (0.0, -0.0, 6e-8, 1.0, -65504.0, 65504.0)
_LOSSES = (*_FLOATS, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))


def _odd_record(rng: random.Random, head: Header) -> Record:
    """A record that can be written, of any kind, with numbers at the ends of their ranges."""
    match rng.randrange(7):
        case 0 | 1 if head.signs:
            return Signs(rng.randbytes(-(-head.signs // 8)))
        case 0 | 1:
            return Step(tuple(rng.choice(_FLOATS) for _ in range(head.scalar_count)))
        case 2:
            return Evaluation(rng.choice(_LOSSES), rng.choice(_LOSSES))
        case 3:
            return Skip(rng.randrange(256))
        case 4:
            name = rng.choice([*head.settings, "train_sha256", "eval_sha256", "x"])
            value = rng.choice([1, 0, -1, 0.5, 1e308, 2**63, "x", "", None, True, [], "a" * 64])
            return Change(name, value)
        case 5:
            return End(rng.randbytes(16), rng.choice(["", "done", "shared", "\x1b[2J"]))
        case _:
            return rng.choice([Reference(rng.choice(_LOSSES)), Note("\u202e\n")])
