"""What ``fuzz`` runs: kinds of files, each damaged or crafted, and what is then read from them."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeEngine, FakeTask, fake_examples, fake_start
from fuzz_odd import EQUAL, SOUND, Case, damage, odd_json, own_file
from fuzz_texts import text_kinds
from seedtune.runtime.bundle import pack_bundle
from seedtune.runtime.bundle.archive import unpack_archive
from seedtune.runtime.bundle.exported_values import export_values, load_values
from seedtune.runtime.bundle.manifest import manifest_digest, parse_manifest
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.journal.crc32c import crc32c
from seedtune.runtime.journal.file import JOURNAL_FILE, read_journal
from seedtune.runtime.journal.format import (
    Change,
    Encoder,
    End,
    Evaluation,
    Header,
    Note,
    Record,
    Reference,
    Skip,
    Step,
    decode_header,
    decode_records,
)
from seedtune.runtime.journal.operations import diff, receive, share
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.settings import Settings
from seedtune.runtime.tuning.metrics import METRICS_FILE, MetricsLog, read_metrics
from seedtune.runtime.tuning.tuner import Tuner
from tiny_bundle import write_tiny_bundle


def kinds(folder: Path) -> dict[str, Case]:
    """The kinds of cases; ``folder`` is for their files."""
    return {**_parts_of_bundles_and_runs(folder), **_runs(folder), **text_kinds(folder)}


def _parts_of_bundles_and_runs(folder: Path) -> dict[str, Case]:
    journals = [_journal(count) for count in (1, 2, 16)]
    snapshot = {
        "step": 5,
        "file": "snapshot-5.safetensors",
        "sha256": "a" * 64,
        "reference": 0.5,
        "evaluations": [[0, 0.5, 0.75]],
    }
    compacted = replace(
        journals[0][0],
        snapshot=snapshot,
        parent={"step": 3, "crc": "0"},
        shape={"rows": 2, "width": 6, "answers": 2},
        task={"spec": {"kind": "completion"}, "objective": "", "on_long": "error"},
    )
    headers = [head.encode()[14:-4] for head in (journals[0][0], compacted)]
    bundle = write_tiny_bundle(folder / "bundle")
    manifest = (folder / "bundle" / "manifest.json").read_bytes()
    content = json.loads(manifest)
    packed = pack_bundle(folder / "bundle", folder / "bundle.seedtune").read_bytes()
    unpacked = unpack_archive(folder / "bundle.seedtune", folder / "cache")
    halves = (bundle.values + np.float16(1)).astype(np.float32)
    tuned = np.concatenate([halves, np.ones(6, np.float32)])
    export_values(folder / "values", tuned, bundle, step=7)
    values = (folder / "values").read_bytes()
    log = MetricsLog(folder)
    for step in range(12):
        log.append(kind="step", step=step, loss=0.5, losses=[0.25, 0.75], skipped=None, seconds=0.1)
    log.close()
    lines, metrics = read_metrics(folder), (folder / METRICS_FILE).read_bytes()

    own = own_file(folder)

    def journal(rng: random.Random) -> tuple[str, Callable[[], str]]:
        head, records, data = rng.choice(journals)
        what, bad = damage(data, rng)
        if rng.random() < 0.2:
            cut = rng.randrange(len(data))
            bad = data[:cut] + bytes(rng.choice([len(data) - cut, rng.randrange(5000)]))
            what = f"zeros from byte {cut} on, {len(bad)} bytes in all"

        def read() -> str:
            found, start, crc = decode_header(bad, "j")
            placed = list(decode_records(bad, found, start, crc, "j"))
            same = found == head and [p.record for p in placed] == records[: len(placed)]
            return EQUAL if same else "different"

        return what, read

    def header(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json(json.loads(rng.choice(headers)), rng)
        start = struct.pack("<8sHI", b"SEEDTJRN", 1, len(text)) + text
        bad = start + struct.pack("<I", crc32c(start))

        def read() -> str:
            found, begin, crc = decode_header(bad, "j")
            list(decode_records(bad, found, begin, crc, "j"))
            return SOUND

        return what, read

    def record(rng: random.Random) -> tuple[str, Callable[[], str]]:
        head, records, data = rng.choice(journals)
        kind, payload = rng.randrange(8), rng.randbytes(rng.randrange(1, 40))
        if kind == 2:
            payload = odd_json({"lr": 0.5}, rng)[1][:255] or b"{}"
        _, start, crc = decode_header(data, "j")
        crc = ([crc] + [p.crc for p in decode_records(data, head, start, crc, "j")])[-1]
        word = struct.pack("<H", 0x7C00 | kind >> 2 << 15 | (kind & 3) << 8 | len(payload))
        middle = crc32c(word, crc)
        end = struct.pack("<I", crc32c(payload, middle))
        bad = data + word + struct.pack("<H", middle >> 16) + payload + end

        def read() -> str:
            found, begin, first = decode_header(bad, "j")
            placed = [p.record for p in decode_records(bad, found, begin, first, "j")]
            return SOUND if placed[: len(records)] == records else "different"

        return f"record of kind {kind} with {payload!r}", read

    def damaged_manifest(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = damage(manifest, rng)

        def read() -> str:
            return EQUAL if parse_manifest(bad, folder).content == content else "different"

        return what, read

    def crafted_manifest(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json(content, rng)
        try:  # as whoever writes it would sign it
            odd = json.loads(text)
            odd["sha256"] = manifest_digest(odd)
            text = json.dumps(odd).encode()
        except (ValueError, TypeError, RecursionError, AttributeError):
            pass

        def read() -> str:
            parse_manifest(text, folder)
            return SOUND

        return what, read

    def damaged_values(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = damage(values, rng)

        def read() -> str:
            own("values").write_bytes(bad)
            same = load_values(own("values"), bundle).tobytes() == tuned.tobytes()
            return EQUAL if same and bad == values else "different"

        return what, read

    def archive(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = damage(packed, rng)

        def read() -> str:
            own("b.seedtune").write_bytes(bad)
            found = unpack_archive(own("b.seedtune"), folder / "cache")
            return EQUAL if found == unpacked else "different"

        return what, read

    def damaged_metrics(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = damage(metrics, rng)

        def read() -> str:
            own(METRICS_FILE).write_bytes(bad)
            found = read_metrics(own(METRICS_FILE).parent)
            return EQUAL if found == lines else SOUND

        return what, read

    return {
        "journal": journal,
        "header": header,
        "record": record,
        "manifest": damaged_manifest,
        "crafted manifest": crafted_manifest,
        "values": damaged_values,
        "archive": archive,
        "metrics": damaged_metrics,
    }


def _runs(folder: Path) -> dict[str, Case]:
    """Journals whose checksums hold, as an attacker writes them, and shared ones on a bad line."""
    start, train = fake_start(24), fake_examples(16)
    ran: list[tuple[Header, list[Record]]] = []
    for name, facts in ESTIMATORS.items():
        rates = {} if facts.own_rates else {"lr": 0.3, "eps": 0.01}
        settings = Settings(estimator=name, steps=4, batch_size=4, eval_every=2, **rates)
        place = folder / "runs" / name
        engine, task = FakeEngine(24), FakeTask()
        with Tuner(engine, start, task, train, folder=place, settings=settings,
                   eval_examples=train[:4]) as live:  # fmt: skip
            list(live)
        journal = read_journal(place)
        ran.append((journal.header, [placed.record for placed in journal.records]))
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
            record = _odd_record(rng, head.scalar_count)
            records[place : place + rng.choice([0, 1])] = [record]
            what.append(f"record {place}: {record}"[:200])

        def read() -> str:
            data = replace(head, **fields).encode()
            encoder = Encoder(head.scalar_count, int.from_bytes(data[-4:], "little"))
            own(JOURNAL_FILE).write_bytes(data + b"".join(map(encoder.encode, records)))
            replay(own(JOURNAL_FILE), start)
            diff(own(JOURNAL_FILE), own(JOURNAL_FILE))
            return SOUND

        return "; ".join(what), read

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

    return {"crafted run": crafted, "shared": received}


def _lenient(text: bytes) -> dict[str, Any] | None:
    """The fields of a header, odd as they are; None where they are not even fields."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and set(found) <= {"settings", "shape"} else None


_FLOATS = (0.0, -0.0, 6e-8, 1.0, -65504.0, 65504.0)
_LOSSES = (*_FLOATS, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))


def _odd_record(rng: random.Random, count: int) -> Record:
    """A record that can be written, of any kind, with numbers at the ends of their ranges."""
    match rng.randrange(7):
        case 0 | 1:
            return Step(tuple(rng.choice(_FLOATS) for _ in range(count)))
        case 2:
            return Evaluation(rng.choice(_LOSSES), rng.choice(_LOSSES))
        case 3:
            return Skip(rng.randrange(256))
        case 4:
            name = rng.choice([*Settings().to_dict(), "train_sha256", "eval_sha256", "x"])
            value = rng.choice([1, 0, -1, 0.5, 1e308, 2**63, "x", "", None, True, [], "a" * 64])
            return Change(name, value)
        case 5:
            return End(rng.randbytes(16), rng.choice(["", "done", "shared", "\x1b[2J"]))
        case _:
            return rng.choice([Reference(rng.choice(_LOSSES)), Note("\u202e\n")])


def _journal(count: int) -> tuple[Header, list[Record], bytes]:
    rng = np.random.default_rng(count)
    head = Header(
        bundle_sha256="b" * 64,
        values_sha256="c" * 64,
        entries=100,
        scalar_count=count,
        settings=Settings(eps=0.01).to_dict(),
        train_sha256="d" * 64,
        eval_sha256=None,
        metric={"name": "accuracy", "higher_is_better": True},
    )
    records: list[Record] = [Evaluation(0.5, 0.75), Note("a remark")]
    for step in range(12):
        records.append(Step(tuple(float(x) for x in rng.normal(size=count).astype(np.float16))))
        records += [Skip(1), Change("lr", 0.5)] if step == 6 else []
    records.append(End(bytes(range(16)), "done"))
    data = head.encode()
    encoder = Encoder(count, int.from_bytes(data[-4:], "little"))
    return head, records, data + b"".join(map(encoder.encode, records))
