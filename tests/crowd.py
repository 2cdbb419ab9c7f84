"""Many clients of a server at once, half of which hang up in the middle of an answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from urllib.parse import urlsplit

WORDS = "the film was long and the rain fell on a small town where nobody had seen it before"
REFUSED = (b"429", b"503")
"""What the server says where a limit is reached."""


async def crowd(url: str, model: str, clients: int, seconds: float) -> Counter[str]:
    """How often clients were answered, hung up or were refused by a limit; whatever else happened
    is named as it was."""
    ends = time.monotonic() + seconds
    found: Counter[str] = Counter()
    places = urlsplit(url)
    assert places.hostname is not None and places.port is not None
    await asyncio.gather(
        *(
            _client(number, places.hostname, places.port, places.path, model, ends, found)
            for number in range(clients)
        )
    )
    return found


async def _client(
    number: int, host: str, port: int, path: str, model: str, ends: float, found: Counter[str]
) -> None:
    drawn = random.Random(number)
    while time.monotonic() < ends:
        prompt = " ".join(drawn.choices(WORDS.split(), k=drawn.randint(1, 20)))
        body = {"model": model, "prompt": prompt, "max_tokens": drawn.randint(4, 32)}
        if number % 4 < 2:
            body["stream"] = True
        # Some at once, some while they wait for their turn, some in the middle of an answer.
        patience = drawn.choice((0.0, 0.05, 0.5, 2.0)) if number % 2 else None
        try:
            outcome = await _ask(host, port, f"{path}/completions", body, patience)
        except (OSError, ValueError, EOFError) as error:
            outcome = repr(error)
        found[outcome] += 1
        if outcome == "refused":
            await asyncio.sleep(drawn.uniform(0.1, 1.0))


async def _ask(
    host: str, port: int, path: str, body: dict[str, object], patience: float | None
) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    try:
        writer.write(head.encode() + content)
        async with asyncio.timeout(patience):
            answer = await reader.read()
    except TimeoutError:
        writer.transport.abort()
        return "hung_up"
    finally:
        writer.close()
    status = answer[9:12]
    if status in REFUSED:
        return "refused"
    whole = b"[DONE]" in answer if body.get("stream") else b"finish_reason" in answer
    return "answered" if status == b"200" and whole else f"{answer[:200]!r}"
