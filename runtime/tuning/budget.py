"""Manners on a device: when to stop, how to pause, and what a signal does."""

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

_log = logging.getLogger("seedtune")


@dataclass(frozen=True)
class Budget:
    """Bounds on a session; whichever is reached first stops the loop between two steps."""

    seconds: float | None = None
    """Active time of this session: steps and evaluations, pauses excluded."""
    forwards: int | None = None
    """Forward passes (one a probe) of training steps, earlier sessions of the run included."""
    check: Callable[[], str | None] | None = None
    """Asked before each step; a text such as ``"battery below 20 %"`` stops the loop with it."""

    def exhausted(self, *, seconds: float, forwards: int, step_forwards: int) -> str | None:
        """Why the next step must not start, or None.

        Args:
            seconds: active time so far.
            forwards: forward passes so far.
            step_forwards: forward passes that a step takes.
        """
        if self.seconds is not None and seconds >= self.seconds:
            return f"time budget of {self.seconds:g} s"
        if self.forwards is not None and forwards + step_forwards > self.forwards:
            return f"budget of {self.forwards} forwards"
        return None


class Control:
    """Pauses, continues and stops a loop from another thread or from a signal handler.

    ``pause``, ``proceed`` and ``stop`` only set a flag, which a signal handler may do at any
    moment; the loop looks at the flags between steps, and between the passes of an evaluation.
    """

    def __init__(
        self,
        rest: Callable[[], str | None] | None = None,
        *,
        every: float = 10.0,
        on_rest: Callable[[str], None] = lambda why: None,
    ) -> None:
        """
        Args:
            rest: why the loop must wait now, such as ``"not charging"``, or None while it may work.
                Asked in the thread that learns.
            every: seconds between two such questions.
            on_rest: hears why the loop begins to wait, for this or another reason, and an empty
                text when it goes on.
        """
        self._paused = False
        self._reason: str | None = None
        self._rest, self._every, self._on_rest = rest, every, on_rest
        self._ask_at = -math.inf
        self._why: str | None = None

    @property
    def paused(self) -> bool:
        """Whether the loop waits, or will after its current step."""
        return self._paused or self._why_rest() is not None

    def _why_rest(self) -> str | None:
        """What ``rest`` says, asked again if that is due."""
        if self._rest is not None and time.monotonic() >= self._ask_at:
            why = self._rest()
            self._ask_at = time.monotonic() + self._every
            if why != self._why:
                self._why = why
                _log.info("waiting: %s", why) if why else _log.info("going on")
                self._on_rest(why or "")
        return self._why

    @property
    def stop_reason(self) -> str | None:
        """What ``stop`` was given, None before."""
        return self._reason

    def pause(self) -> None:
        """Let the loop wait after its current step."""
        self._paused = True

    def proceed(self) -> None:
        """Let a paused loop go on."""
        self._paused = False

    def stop(self, reason: str = "stopped by the app") -> None:
        """Let the loop end after its current step; the run can be resumed."""
        self._reason = self._reason or reason

    def wait(self) -> None:
        """Return at once unless paused, else when told to proceed or to stop, and nothing asks for
        rest."""
        # Polling: a lock or an event could deadlock with a signal handler that sets it.
        while self._reason is None and self.paused:
            time.sleep(0.05)


@contextlib.contextmanager
def signals(control: Control) -> Iterator[None]:
    """While active: SIGINT (Ctrl-C) and SIGTERM stop, SIGUSR1 pauses, SIGUSR2 continues.

    The step under way is finished and recorded. A second SIGINT does not wait for it
    (``KeyboardInterrupt``); the journal is whole all the same. Does nothing outside the main
    thread, where Python takes no signals; Windows lacks the last two. Ctrl-Z and ``fg`` work
    without any of this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and control.stop_reason is not None:
            raise KeyboardInterrupt
        control.stop(signal.Signals(number).name)

    def pause(number: int, frame: FrameType | None) -> None:
        control.pause()

    def proceed(number: int, frame: FrameType | None) -> None:
        control.proceed()

    handlers = {"SIGINT": stop, "SIGTERM": stop, "SIGUSR1": pause, "SIGUSR2": proceed}
    before = {
        number: signal.signal(number, handler)
        for name, handler in handlers.items()
        if (number := getattr(signal, name, None)) is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
