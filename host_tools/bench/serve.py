"""``seedtune bench serve``: what the server costs over ``seedtune generate``, and a crowd.

Each turn starts both in processes of their own, which answer the same prompts, one after the other
each time; the best of its answers counts, so that a busy machine has the least part in it. Then
half of 64 clients hang up for some minutes while the server's memory is looked at.
Linux only.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.errors import SeedtuneError

from ..data.fetch import fetch
from ..prepare.prepare import prepare
from ..quickstart import MODEL
from .measuring import generating
from .measuring.crowd import crowd
from .measuring.results_files import RESULTS, say, write_figures

PROMPTS = (
    "The history of the city begins with a camp on the river, which guarded the northern border of "
    "an empire. Merchants came, and then craftsmen, who",
    "Rain falls when water that the sun has lifted from the sea cools high above the ground. Most "
    "of it comes back to the sea, but some of it",
    "A good bread needs flour, water, salt and time. Whoever is in a hurry takes more yeast, but "
    "whoever waits for a night will find that",
)
ANSWER, TIMES = 32, 4
"""Tokens of an answer, and how often each is asked for in a turn."""
SERVED, GENERATED = "served", "generated"
CLIENTS, EVERY, SETTLED = 64, 5.0, 60.0
"""Clients; seconds between two looks at the server's memory, and before the first that counts."""


def bench_serve(
    *,
    bundle: Path | None = None,
    threads: int = 1,
    turns: int = 5,
    seconds: float = 300.0,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Figures, also written to ``serve.json`` in ``results``.

    Args:
        bundle: by default the quickstart's.
        seconds: that the crowd stays.

    Returns:
        ``first_over_generate``, ``speed_over_generate`` and ``processor_over_generate`` (its time
        for the same answers), medians of the turns' ratios; ``resident_over_generate_bytes``, the
        median difference; ``crowd``: outcomes by their number, and the server's own memory
        when it had settled, at most afterwards and at the end.
    """
    path = bundle or prepare(str(fetch(MODEL))).bundle.path
    ratios: list[dict[str, float]] = []
    taken: list[dict[str, float]] = []
    for turn in range(turns):
        with _server(path, threads) as (url, server), _generate(path, threads) as (ask, process):
            model = _ask_json(url, "/models")["data"][0]["id"]
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            ways = {SERVED: partial(_stream, connection, model), GENERATED: ask}
            processes = {SERVED: server, GENERATED: process}
            found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
            for number, prompt in enumerate((PROMPTS[-1], *TIMES * PROMPTS)):
                for name in list(ways) if (turn + number) % 2 else list(ways)[::-1]:
                    before = _processor_seconds(processes[name])
                    answered = ways[name](prompt)
                    spent = _processor_seconds(processes[name]) - before
                    found[name].append({**answered, "processor_seconds": spent})
            held = {name: _memory(process, "VmRSS") for name, process in processes.items()}
            connection.close()
        ratios.append({what: _ratio(found, what) for what in found[SERVED][0]})
        ratios[-1]["resident_bytes"] = held[SERVED] - held[GENERATED]
        taken += found[SERVED][1:]
        say(f"turn {turn + 1} of {turns}: {ratios[-1]}, load {os.getloadavg()[0]:.1f}")
    figures = {
        "first_over_generate": _median(ratios, "first_seconds"),
        "speed_over_generate": _median(ratios, "tokens_per_second"),
        "processor_over_generate": _median(ratios, "processor_seconds"),
        "resident_over_generate_bytes": _median(ratios, "resident_bytes"),
        "first_seconds": min(row["first_seconds"] for row in taken),
        "tokens_per_second": max(row["tokens_per_second"] for row in taken),
        "threads": threads,
        "turns": turns,
        "load": os.getloadavg()[0],
        "crowd": asyncio.run(_crowd(path, threads, seconds)),
        "bundle_sha256": open_bundle(path).sha256,
    }
    return write_figures("serve", figures, results)


async def _crowd(bundle: Path, threads: int, seconds: float) -> dict[str, Any]:
    with _server(bundle, threads) as (url, pid):
        model = _ask_json(url, "/models")["data"][0]["id"]
        clients = asyncio.ensure_future(crowd(url, model, CLIENTS, seconds))
        began, held = time.monotonic(), []
        while not clients.done():
            await asyncio.wait([clients], timeout=EVERY)
            held.append((time.monotonic() - began, _memory(pid, "RssAnon")))
            say(f"{held[-1][0]:.0f} s: {held[-1][1] / 1e6:.1f} MB")
        settled = [own for at, own in held if at >= min(SETTLED, seconds / 2)]
        outcomes = await clients
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        _stream(connection, model, PROMPTS[0])  # it still answers
        connection.close()
    return {
        "clients": CLIENTS,
        "seconds": seconds,
        "outcomes": dict(outcomes),
        "own_bytes": settled[0],
        "most_own_bytes": max(settled),
        "last_own_bytes": settled[-1],
        "load": os.getloadavg()[1],
    }


@contextmanager
def _server(bundle: Path, threads: int) -> Iterator[tuple[str, int]]:
    """URL and process id; Ctrl-C must end it well."""
    command = [sys.executable, "-m", "seedtune.host_tools.cli", "serve", str(bundle)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", str(threads)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.match(r"http://\S+", said)
        if found is None:
            raise SeedtuneError(f"bench serve: the server did not start: {said.strip()}")
        yield found[0], process.pid
        process.send_signal(signal.SIGINT)
        code, rest = process.wait(30), process.stderr.read()
        if code or rest:
            raise SeedtuneError(f"bench serve: the server ended with exit code {code}: {rest}")
    finally:
        process.kill()
        process.wait()


@contextmanager
def _generate(bundle: Path, threads: int) -> Iterator[Any]:
    """What asks a process of ``generating``, and its id."""
    command = [sys.executable, "-m", generating.__name__, str(bundle), str(threads), str(ANSWER)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        stdout.readline()

        def ask(prompt: str) -> dict[str, float]:
            stdin.write(json.dumps(prompt) + "\n")
            stdin.flush()
            found: dict[str, float] = json.loads(stdout.readline())
            return found

        yield ask, process.pid
        stdin.close()


def _ask_json(url: str, path: str) -> Any:
    places = urlsplit(url)
    connection = http.client.HTTPConnection(places.netloc, timeout=60)
    connection.request("GET", places.path + path)
    return json.load(connection.getresponse())


def _stream(connection: http.client.HTTPConnection, model: str, prompt: str) -> dict[str, float]:
    """The seed asks for an empty text, which ``generate`` begins with, too. Who asks is connected
    before the clock starts, as clients keep their connections."""
    connection.close()
    connection.connect()
    asked = {"model": model, "prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "seed": 0}
    body = json.dumps({**asked, "stream": True, "stream_options": {"include_usage": True}})
    began = time.perf_counter()
    first = last = 0.0
    tokens = 0
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event["usage"]:
            tokens = event["usage"]["completion_tokens"]
        elif event["choices"][0]["text"]:
            last = time.perf_counter()
            first = first or last
    return {"first_seconds": first - began, "tokens_per_second": (tokens - 1) / (last - first)}


def _median(rows: list[dict[str, float]], what: str) -> float:
    return statistics.median(row[what] for row in rows)


def _ratio(found: dict[str, list[dict[str, float]]], what: str) -> float:
    """The server's best over the other's; the first prompt only warms both."""
    best = max if what == "tokens_per_second" else min
    served, generated = (best(row[what] for row in found[name][1:]) for name in found)
    return served / generated


def _processor_seconds(pid: int) -> float:
    """Of a process and its threads so far, by its own clock (see ``clock_getcpuclockid``)."""
    return time.clock_gettime((~pid << 3) | 2)


def _memory(pid: int, what: str) -> int:
    """Bytes of a process: ``VmRSS``, all that is resident, or ``RssAnon``, what is its own. The
    rest are pages of files, of the program's words those that were said so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
