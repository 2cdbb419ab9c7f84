"""Damaged and crafted files by the thousand: each is refused in one line, or means what it meant.

``python tests/fuzz.py --cases 1000000`` prints a table of outcomes and the cases that failed, each
of which runs again by its number: ``--kind journal --first 123 --cases 1``. Cases run in forked
processes, so that a signal, a hang or memory is counted as well as an exception.
"""

import argparse
import contextlib
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
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fuzz_cases import kinds
from fuzz_odd import EQUAL, REFUSED, SOUND, Case
from seedtune.runtime.errors import SeedtuneError, SeedtuneWarning
from seedtune.runtime.tasks import tokenising

GOOD = (REFUSED, EQUAL, SOUND)
BAD = ("different", "traceback", "signal", "hang", "memory")
SECONDS, MEGABYTES = 10, 256


class Hang(BaseException):
    """A case took longer than ``SECONDS``."""


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
    cases: int,
    *,
    seed: int = 0,
    first: int = 0,
    only: str | None = None,
    programs: Path | None = None,
    block: int = 5000,
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Run cases; their outcomes by kind, and a line for each that failed. Ctrl-C ends it early."""
    found: dict[str, Counter[str]] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        all_kinds = kinds(Path(temporary), programs)
        names = [only] if only else list(all_kinds)
        at = mmap.mmap(-1, 8)  # the case that a process is at, for when it dies
        case = first
        with contextlib.suppress(KeyboardInterrupt):  # what was found until then counts
            while case < first + cases:
                last = min(case + block, first + cases)
                status = _in_a_child(all_kinds, names, seed, case, last, at, found, failures)
                if os.WIFSIGNALED(status):
                    case = struct.unpack("<q", at[:8])[0]
                    name, number = _kind_of(case, names), os.WTERMSIG(status)
                    result = "hang" if number == signal.SIGVTALRM else "signal"
                    found.setdefault(name, Counter())[result] += 1
                    failures.append(f"{name}: {result}: signal {number}: --first {case}")
                    last = case + 1
                case = last
    return found, failures


def _in_a_child(
    all_kinds: dict[str, Case],
    names: list[str],
    seed: int,
    case: int,
    last: int,
    at: mmap.mmap,
    found: dict[str, Counter[str]],
    failures: list[str],
) -> int:
    """Run a block in a forked process and take its outcomes in; how it ended (see os.waitpid)."""
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
    return status


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

    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # for libraries that do not come back
    warnings.simplefilter("ignore", SeedtuneWarning)
    tokenising.SECONDS = SECONDS / 10
    _silence_libraries()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Of addresses, which are many times the resident memory in a process that has loaded torch.
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(case, last):
        at[:8] = struct.pack("<q", number)
        name = _kind_of(number, names)
        what, read = all_kinds[name](random.Random(f"{seed} {number} {name}"))
        # Of the processor's time: a busy machine is no hang. What only waits has its limit, too.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)
        result, detail = outcome(read)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        before, peak = peak, max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        if peak - before > MEGABYTES << 10:
            result, detail = "memory", f"{(peak - before) >> 10} MB"
        detail = "" if result in GOOD else f"{detail} after {what}: --first {number}"
        os.write(writer, (json.dumps([name, result, detail]) + "\n").encode())
    os._exit(0)


def _silence_libraries() -> None:
    """Leave standard error to Python: panics in Rust write there, each in many lines."""
    with contextlib.suppress(OSError):
        own = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(own, "w", buffering=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", default=None, help="only this kind; numbers are then its own")
    parser.add_argument("--bundle", type=Path, help="the tiny model's, as exported before")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    found, failures = fuzz(
        given.cases, seed=given.seed, first=given.first, only=given.kind, programs=given.bundle
    )
    columns = GOOD + BAD
    print(f"{'':17}" + "".join(f"{column:>10}" for column in columns))
    for name, counts in [*found.items(), ("all", sum(found.values(), Counter()))]:
        print(f"{name:17}" + "".join(f"{counts[column]:>10}" for column in columns))
    total = sum(counts.total() for counts in found.values())
    print(f"{total} cases in {time.monotonic() - began:.0f} s")
    for failure in failures[:50]:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
