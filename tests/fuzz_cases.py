"""What ``fuzz`` runs: kinds of files, each damaged or crafted, and what is then read from them."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
from fuzz_chats import chat_kinds
from fuzz_commands import command_kinds
from fuzz_odd import EQUAL, SOUND, Case, damage, odd_json, odd_tensors, own_file
from fuzz_programs import export_programs, program_kinds
from fuzz_runs import run_kinds
from fuzz_texts import text_kinds
from journal_bytes import encoded, header
from safetensors.numpy import load
from seedtune.runtime.bundle import open_bundle, pack_bundle
from seedtune.runtime.bundle.archive import unpack_archive
from seedtune.runtime.bundle.manifest import manifest_digest, parse_manifest
from seedtune.runtime.bundle.text_head import load_text_frame
from seedtune.runtime.journal.format import (
    MAGIC,
    VERSION,
    Change,
    End,
    Evaluation,
    Header,
    Note,
    Record,
    Signs,
    Skip,
    Step,
    decode_header,
    decode_records,
)
from seedtune.runtime.journal.metrics import MetricsLog, read_metrics
from seedtune.runtime.journal.run_folder import METRICS_FILE
from seedtune.runtime.scoring.answer_head import AnswerHead
from seedtune.runtime.scoring.parts import kinds_of
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values, load_values
from text_bundle import STATES, WIDTH, write_text_bundle
from tiny_bundle import write_tiny_bundle


def kinds(folder: Path, programs: Path | None = None) -> dict[str, Case]:
    """The kinds of cases.

    Args:
        folder: for their files.
        programs: bundle of the tiny model, for ONNX and torch; exported here by default.
    """
    bundle = open_bundle(programs or export_programs(folder / "programs"))
    return {
        **_files(folder),
        **run_kinds(folder),
        **text_kinds(folder),
        **chat_kinds(),
        **program_kinds(folder, bundle),
        **command_kinds(folder, folder / "runs" / "two-point", bundle),
    }


def _files(folder: Path) -> dict[str, Case]:
    journals = [_journal(count) for count in (1, 2, 16)]
    journals += [_journal(0, signs) for signs in (21, 70_000)]
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
        shape={"answers": 2},
        part={"kind": "answer-head", "labels": ["b", "a"], "width": 6},
        task={"spec": {"kind": "completion"}, "on_long": "error"},
    )
    headers = [head.encode()[14:-4] for head in (journals[0][0], compacted, journals[3][0])]
    bundle = write_tiny_bundle(folder / "bundle")
    part_kinds = kinds_of(bundle)
    text_bundle = write_text_bundle(folder / "text")
    assert text_bundle.text_head is not None
    manifests = [(folder / name / "manifest.json").read_bytes() for name in ("bundle", "text")]
    packed = pack_bundle(folder / "bundle", folder / "bundle.seedtune").read_bytes()
    unpacked = unpack_archive(folder / "bundle.seedtune", folder / "cache")
    halves = (bundle.values + np.float16(1)).astype(np.float32)
    tuned = Values(halves, AnswerHead(("b", "a"), 2, np.ones(7, np.float32)))
    export_values(folder / "values", tuned, bundle, step=7)
    values = (folder / "values").read_bytes()
    log = MetricsLog(folder, 9)
    for step in range(12):
        log.append(kind="step", step=step, loss=0.5, skipped=None, seconds=0.1)
    log.close()
    frame, info = (folder / "text" / "text.safetensors").read_bytes(), text_bundle.text_head
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

    def crafted_header(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json(json.loads(rng.choice(headers)), rng)
        start = struct.pack("<8sHI", MAGIC, VERSION, len(text)) + text
        bad = start + struct.pack("<I", crc32(start))

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
        middle = crc32(word, crc)
        end = struct.pack("<I", crc32(payload, middle))
        bad = data + word + struct.pack("<H", middle >> 16) + payload + end

        def read() -> str:
            found, begin, first = decode_header(bad, "j")
            placed = [p.record for p in decode_records(bad, found, begin, first, "j")]
            return SOUND if placed[: len(records)] == records else "different"

        return f"record of kind {kind} with {payload!r}", read

    def damaged_manifest(rng: random.Random) -> tuple[str, Callable[[], str]]:
        whole = rng.choice(manifests)
        what, bad = damage(whole, rng)

        def read() -> str:
            same = parse_manifest(bad, folder).manifest == json.loads(whole)
            return EQUAL if same else "different"

        return what, read

    def crafted_manifest(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json(json.loads(rng.choice(manifests)), rng)
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
            same = load_values(own("values"), bundle, part_kinds).sha256 == tuned.sha256
            return EQUAL if same else "different"  # blanks of the header are free

        return what, read

    def archive(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, bad = damage(packed, rng)

        def read() -> str:
            own("b.seedtune").write_bytes(bad)
            found = unpack_archive(own("b.seedtune"), folder / "cache")
            return EQUAL if found == unpacked else "different"

        return what, read

    def text_frame(rng: random.Random) -> tuple[str, Callable[[], str]]:
        tensors = load(frame)
        what, bad = odd_tensors(tensors, rng) if rng.random() < 0.5 else damage(frame, rng)

        def read() -> str:
            own("text").write_bytes(bad)
            load_text_frame(own("text"), Path("text"), info, (WIDTH, STATES))
            return EQUAL if bad == frame else SOUND

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
        "header": crafted_header,
        "record": record,
        "manifest": damaged_manifest,
        "crafted manifest": crafted_manifest,
        "values": damaged_values,
        "archive": archive,
        "text frame": text_frame,
        "metrics": damaged_metrics,
    }


def _journal(count: int, signs: int = 0) -> tuple[Header, list[Record], bytes]:
    rng = np.random.default_rng(count)
    head = header(count, signs=signs)
    records: list[Record] = [Evaluation(0.5, 0.75), Note("a remark")]
    for step in range(12):
        scalars = tuple(float(x) for x in rng.normal(size=count).astype(np.float16))
        records.append(Signs(rng.bytes(-(-signs // 8))) if signs else Step(scalars))
        records += [Skip(1), Change("lr", 0.5)] if step == 6 else []
    records.append(End(bytes(range(16)), "done"))
    return head, records, encoded(head, records)
