"""One thread that answers, one request after another, in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from .refusal import Refusal

Left = Callable[[], bool]
"""Whether nobody waits any more, or the time is up."""
Job = Callable[[Left], Generator[Any]]
"""What a request asks for, piece by piece, in the thread."""


class Worker:
    """A model is used by one thread at a time, and on one processor two answers at once would each
    take twice as long and hold two caches. So requests wait for each other, but only so many."""

    def __init__(self, waiting: int, seconds: float) -> None:
        """
        Args:
            waiting: requests that may wait for the one under way.
            seconds: that a request may take, its waiting included.
        """
        self._waiting, self._seconds = waiting, seconds
        self._thread = ThreadPoolExecutor(1, "answers")
        self._inside = 0
        self._ending = threading.Event()

    @property
    def inside(self) -> int:
        """Requests that wait or are answered."""
        return self._inside

    async def pieces(self, job: Job) -> AsyncGenerator[list[Any]]:
        """What ``job`` gives, as it comes, in lists of all that is there. Close it to leave: the
        next one begins as soon as the job has seen that.

        Raises:
            Refusal: too many wait already, or its turn did not come in time.
            Exception: what the job raised.
        """
        if self._inside > self._waiting:
            raise Refusal(
                429,
                f"{self._waiting} requests wait already; ask again later",
                kind="rate_limit_error",
            )
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        ends = time.monotonic() + self._seconds
        left = threading.Event()

        def over() -> bool:
            return left.is_set() or self._ending.is_set() or time.monotonic() >= ends

        def tell(what: str, content: Any = None) -> None:
            if not left.is_set():
                loop.call_soon_threadsafe(found.put_nowait, (what, content))

        def work() -> None:
            tell("begins")
            try:
                with closing(job(over)) as pieces:
                    for piece in pieces:
                        tell("piece", piece)
                        if left.is_set():
                            break
            except BaseException as error:  # the client's to hear, not the thread's
                tell("failed", error)
            tell("done")

        self._inside += 1
        answering = self._thread.submit(work)
        # Not when the client has read it all: who reads slowly holds nobody up.
        answering.add_done_callback(lambda _: _soon(loop, self._leave))
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await found.get()
            except TimeoutError:
                raise Refusal(
                    503,
                    f"its turn did not come in {self._seconds:g} s; ask again later",
                    kind="overloaded_error",
                ) from None
            what = "piece"
            while what == "piece":
                what, content = await found.get()
                several = []
                while what == "piece":
                    several.append(content)
                    if found.empty():
                        break
                    what, content = found.get_nowait()
                if several:
                    yield several
            if what == "failed":
                raise content
        finally:
            left.set()
            answering.cancel()

    def _leave(self) -> None:
        self._inside -= 1

    def end(self) -> None:
        """Let the time of every request be over."""
        self._ending.set()

    def close(self) -> None:
        """Wait for the piece under way."""
        self.end()
        self._thread.shutdown(cancel_futures=True)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
