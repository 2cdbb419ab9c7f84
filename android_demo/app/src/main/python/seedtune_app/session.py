"""One session of learning: the loop of ``seedtune.runtime`` with a phone's manners around it."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

from seedtune.runtime.files import replace_file
from seedtune.runtime.journal.file import JOURNAL_FILE
from seedtune.runtime.model import Model
from seedtune.runtime.tuning.budget import Budget, Control

_POLL_SECONDS = 0.1
PAUSED_BY_USER = "user"


class Listener(Protocol):
    """What hears of a session; in the app, a Kotlin object. Called from the session's thread."""

    def stepped(self, step: int, steps: int, loss: float) -> None:
        """A step is done and recorded."""

    def evaluating(self, done: int, total: int) -> None:
        """So many held-out rows are judged."""

    def waiting(self, reason: str) -> None:
        """The session rests until what the reason names is over."""


class Session:
    """Runs until the steps are done or it is told to stop; ``unfinished`` outlives a kill."""

    def __init__(
        self, marker: Path, kind: str, share: float, listener: Listener, holds: dict[str, str]
    ) -> None:
        """
        Args:
            marker: file that exists while the session is to go on, whatever happens to the process.
            share: part of the time that may be computed in, above 0 to 1.
            holds: who lets it rest already, and why.
        """
        self.kind = kind
        self.control = Control()
        self._marker, self._share, self._listener = marker, min(max(share, 0.05), 1.0), listener
        self._holds = holds
        self._last_step = time.monotonic()
        self._running = False
        self._heed_holds()

    def hold(self, who: str, reason: str | None) -> None:
        """Pause on behalf of ``who`` (the user, the phone's state), or no longer if None."""
        if reason is None:
            self._holds.pop(who, None)
        else:
            self._holds[who] = reason
        if self._running:
            self._mark()
        self._heed_holds()

    def _mark(self) -> None:
        paused = PAUSED_BY_USER in self._holds
        order = {"kind": self.kind, "share": self._share, "paused": paused}
        replace_file(self._marker, json.dumps(order).encode(), private=True)

    def _heed_holds(self) -> None:
        if self._holds:
            self.control.pause()
            self._listener.waiting(next(iter(self._holds.values())))
        else:
            self.control.proceed()

    @property
    def held(self) -> str | None:
        """Why it rests, if it does."""
        return next(iter(self._holds.values()), None)

    def run(self, model: Model, folder: Path, train: Any, held_out: Any, settings: Any) -> str:
        """Start the run in ``folder`` or go on with it; why it ended.

        Raises:
            SeedtuneError: one line; what was recorded until then is safe, and the marker is gone.
        """
        if (folder / JOURNAL_FILE).exists():
            settings = {}  # it has its own, perhaps of an older version of the app
        self._mark()
        self._running = True
        try:
            with model.tuner(
                folder,
                train,
                held_out,
                budget=Budget(check=self._rest),
                control=self.control,
                on_evaluation=self._listener.evaluating,
                **settings,
            ) as tuner:
                steps = tuner.history.settings.resolved_steps
                self._last_step = time.monotonic()
                for report in tuner:
                    loss = report.loss if math.isfinite(report.loss) else -1.0
                    self._listener.stepped(report.step, steps, loss)
                return tuner.stop_reason or ""
        finally:
            self._running = False
            with contextlib.suppress(OSError):
                self._marker.unlink(missing_ok=True)

    def _rest(self) -> None:
        """Between steps: sleep as long as the last one took, times what is not ours."""
        worked = time.monotonic() - self._last_step
        until = time.monotonic() + worked * (1 / self._share - 1)
        while (left := until - time.monotonic()) > 0 and self.control.stop_reason is None:
            time.sleep(min(left, _POLL_SECONDS))
        self._last_step = time.monotonic()


def unfinished(marker: Path) -> dict[str, Any] | None:
    """What a killed session was doing: kind and share, and whether the user had paused it."""
    try:
        order = json.loads(marker.read_text(encoding="utf-8"))
        found = {"kind": str(order["kind"]), "share": float(order["share"])}
        return {**found, "paused": bool(order["paused"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
