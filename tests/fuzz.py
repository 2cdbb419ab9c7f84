"""Damaged and crafted files by the thousand: each is refused in one line, or means what it meant.

``python tests/fuzz.py --cases 1000000`` prints a table of outcomes and the cases that failed, each
of which runs again by its number: ``--kind journal --first 123 --cases 1``. Cases run in forked
processes, so that a signal, a hang or memory is counted as well as an exception.
"""

import argparse
import copy
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from faults import damaged
from seedtune.runtime.bundle import pack_bundle
from seedtune.runtime.bundle.archive import unpack_archive
from seedtune.runtime.bundle.exported_values import export_values, load_values
from seedtune.runtime.bundle.manifest import manifest_digest, parse_manifest
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.journal.crc32c import crc32c
from seedtune.runtime.journal.format import (
    Change,
    Encoder,
    End,
    Evaluation,
    Header,
    Note,
    Record,
    Skip,
    Step,
    decode_header,
    decode_records,
)
from seedtune.runtime.settings import Settings
from seedtune.runtime.tuning.metrics import METRICS_FILE, MetricsLog, read_metrics
from tiny_bundle import write_tiny_bundle

REFUSED, EQUAL, SOUND = "refused", "equal", "sound"
"""``SOUND``: accepted with another, well-formed content, whose checksums the case made fit."""
GOOD = (REFUSED, EQUAL, SOUND)
BAD = ("different", "traceback", "signal", "hang", "memory")
SECONDS, MEGABYTES = 20, 256

Case = Callable[[random.Random], tuple[str, Callable[[], str]]]
"""From a seeded source of chance to what was done to the file and what reads it, which returns an
outcome."""


class Hang(BaseException):
    """A case took longer than ``SECONDS``."""


def kinds(folder: Path) -> dict[str, Case]:
    """The kinds of cases; ``folder`` is for their files."""
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

    def own(name: str) -> Path:
        place = folder / str(os.getpid())
        place.mkdir(exist_ok=True)
        return place / name

    def journal(rng: random.Random) -> tuple[str, Callable[[], str]]:
        head, records, data = rng.choice(journals)
        what, bad = _damaged(data, rng)
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
        what, text = _odd_json(json.loads(rng.choice(headers)), rng)
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
            payload = _odd_json({"lr": 0.5}, rng)[1][:255] or b"{}"
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
        what, bad = _damaged(manifest, rng)

        def read() -> str:
            return EQUAL if parse_manifest(bad, folder).content == content else "different"

        return what, read

    def crafted_manifest(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = _odd_json(content, rng)
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
        what, bad = _damaged(values, rng)

        def read() -> str:
            own("values").write_bytes(bad)
            same = load_values(own("values"), bundle).tobytes() == tuned.tobytes()
            return EQUAL if same and bad == values else "different"

        return what, read

    def archive(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = _damaged(packed, rng)

        def read() -> str:
            own("b.seedtune").write_bytes(bad)
            found = unpack_archive(own("b.seedtune"), folder / "cache")
            return EQUAL if found == unpacked else "different"

        return what, read

    def damaged_metrics(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = _damaged(metrics, rng)

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


def _damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    what = []
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if data:
            fault, data = damaged(data, rng)
            what.append(fault)
    return ", ".join(what), data


_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 10**400, -(10**30), 0.5,
    -0.5, 1e308, float("inf"), float("nan"), "", "x", "\ud83d", "x" * 5000, "../x", "\x1b[2J", "\n",
    "0" * 64, [], {}, [[]], [{}], {"a": 1}, [1, "a", None], {"": {"": {}}},
]  # fmt: skip


def _odd_json(value: Any, rng: random.Random) -> tuple[str, bytes]:
    """JSON of ``value`` with one or two of its fields odd, gone or deep, or with damaged bytes."""
    value, what = copy.deepcopy(value), []
    for _ in range(rng.choice([1, 1, 2])):
        holders = [(value, key) for key in value] if isinstance(value, dict) else []
        for holder, key in holders:
            inner = holder[key]
            if isinstance(inner, dict):
                holders += [(inner, name) for name in inner]
            elif isinstance(inner, list):
                holders += [(inner, index) for index in range(len(inner))]
        if not holders:
            break
        holder, key = rng.choice(holders)
        way = rng.random()
        if way < 0.1:
            del holder[key]
            what.append(f"{key} gone")
        elif way < 0.15:
            depth = rng.choice([3, 63, 64, 500])
            holder[key] = json.loads("[" * depth + "]" * depth)
            what.append(f"{key} {depth} deep")
        else:
            holder[key] = copy.deepcopy(rng.choice(_ODD))
            what.append(f"{key}={str(holder[key])[:40]!a}")
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    if rng.random() < 0.1:
        fault, text = damaged(text, rng)
        what.append(fault)
    return ", ".join(what), text


def outcome(read: Callable[[], str]) -> tuple[str, str]:
    """What became of a case, and the exception that should not have been."""
    try:
        return read(), ""
    except SeedtuneError as error:
        text = str(error)
        clean = "\n" not in text and len(text) < 2000 and text.isprintable()
        return (REFUSED, "") if clean else ("traceback", f"message {text[:200]!r}")
    except Hang:
        return "hang", f"over {SECONDS} s"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"[:200]


def fuzz(
    cases: int, *, seed: int = 0, first: int = 0, only: str | None = None, block: int = 5000
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Run cases; their outcomes by kind, and a line for each that failed."""
    found: dict[str, Counter[str]] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        all_kinds = kinds(Path(temporary))
        names = [only] if only else list(all_kinds)
        at = mmap.mmap(-1, 8)  # the case that a process is at, for when it dies
        case = first
        while case < first + cases:
            last = min(case + block, first + cases)
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                try:
                    _run_block(all_kinds, names, seed, case, last, at, writer)
                finally:
                    os._exit(1)  # never into the parent's own ends
            os.close(writer)
            with os.fdopen(reader) as lines:
                for line in lines:
                    name, result, detail = json.loads(line)
                    found.setdefault(name, Counter())[result] += 1
                    if detail:
                        failures.append(f"{name}: {result}: {detail}")
            _, status = os.waitpid(child, 0)
            assert status == 0 or os.WIFSIGNALED(status), "the fuzz itself failed"
            if os.WIFSIGNALED(status):
                case = struct.unpack("<q", at[:8])[0]
                name = _kind_of(case, names)
                found.setdefault(name, Counter())["signal"] += 1
                failures.append(f"{name}: signal {os.WTERMSIG(status)}: --first {case}")
                last = case + 1
            case = last
    return found, failures


def _kind_of(case: int, names: list[str]) -> str:
    return names[case % len(names)]


def _run_block(
    all_kinds: dict[str, Case],
    names: list[str],
    seed: int,
    case: int,
    last: int,
    at: mmap.mmap,
    writer: int,
) -> None:
    """In a process of its own: each result is written as it comes, since the next case may kill."""

    def late(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = peak * 1024 + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(case, last):
        at[:8] = struct.pack("<q", number)
        name = _kind_of(number, names)
        what, read = all_kinds[name](random.Random(f"{seed} {number} {name}"))
        signal.alarm(SECONDS)
        result, detail = outcome(read)
        signal.alarm(0)
        before, peak = peak, max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        if peak - before > MEGABYTES << 10:
            result, detail = "memory", f"{(peak - before) >> 10} MB"
        detail = "" if result in GOOD else f"{detail} after {what}: --first {number}"
        os.write(writer, (json.dumps([name, result, detail]) + "\n").encode())
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", default=None, help="only this kind; numbers are then its own")
    given = parser.parse_args()
    began = time.monotonic()
    found, failures = fuzz(given.cases, seed=given.seed, first=given.first, only=given.kind)
    columns = GOOD + BAD
    print(f"{'':17}" + "".join(f"{column:>10}" for column in columns))
    for name, counts in [*found.items(), ("all", sum(found.values(), Counter()))]:
        print(f"{name:17}" + "".join(f"{counts[column]:>10}" for column in columns))
    print(f"{given.cases} cases in {time.monotonic() - began:.0f} s")
    for failure in failures[:50]:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
