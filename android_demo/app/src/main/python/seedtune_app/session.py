"""One session of learning: the loop of ``seedtune.runtime`` with a phone's manners around it."""

import contextlib
import json
import math
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from seedtune.runtime.files import replace_file
from seedtune.runtime.journal.run_folder import JOURNAL_FILE
from seedtune.runtime.model import Model
from seedtune.runtime.tuning.budget import Budget, Control

_POLL_SECONDS = 0.1
PAUSED_BY_USER = "user"
Order = dict[str, Any]
"""``kind``; ``share`` of the time that may be computed in, above 0 to 1; ``paused`` by the user;
``starts``: how often it was begun without coming to a step."""
Holds = dict[str, str]
MOST_STARTS = 3
"""So often a session is begun that dies before its first step, and no more: what kills it would do
so whenever the app is opened."""


class Listener(Protocol):
    """What hears of a session; in the app, a Kotlin object. Called from the session's thread."""

    def stepped(self, step: int, steps: int, loss: float) -> None:
        """A step is done and recorded."""

    def evaluating(self, done: int, total: int) -> None:
        """So many held-out rows are judged."""

    def waiting(self, reason: str) -> None:
        """The session rests until what the reason names is over; empty: it goes on."""


class Session:
    """Runs until the steps are done or it is told to stop; ``unfinished`` outlives a kill."""

    def __init__(self, marker: Path, order: Order, listener: Listener, holds: Holds) -> None:
        """
        Args:
            marker: file that exists while the session is to go on, whatever happens to the process.
            order: what to do.
            holds: who lets it rest already, and why.
        """
        self.kind = str(order["kind"])
        self.control = Control()
        self._share, self._starts = min(max(order["share"], 0.05), 1.0), order["starts"] + 1
        self._marker, self._order, self._listener, self._holds = marker, order, listener, holds
        self._worked = 0.0
        self._running, self._marking = False, threading.Lock()

    def hold(self, who: str, reason: str | None) -> None:
        """Pause on behalf of ``who`` (the user, the phone's state), or no longer if None."""
        if self._holds.get(who) == reason:
            return  # the phone's state is told often
        self._holds.pop(who, None)
        if reason is not None:
            self._holds[who] = reason
        try:
            self._keep_mark()  # first: a kill must not undo what was shown
        finally:
            self._heed_holds()  # on a full disk, too

    def _keep_mark(self) -> None:
        """Not after the end, which takes the mark away."""
        with self._marking:
            if self._running:
                self._mark()

    def _mark(self) -> None:
        # Resting does no harm: a process that is killed then is not one that kills itself.
        starts = 0 if self._holds else self._starts
        order = self._order | {"paused": PAUSED_BY_USER in self._holds, "starts": starts}
        replace_file(self._marker, json.dumps(order).encode(), private=True)

    def _heed_holds(self) -> None:
        if (reason := next(iter(self._holds.values()), None)) is not None:
            self.control.pause()
            self._listener.waiting(reason)
        elif self.control.paused:
            self.control.proceed()
            self._listener.waiting("")

    def run(self, model: Model, folder: Path, train: Any, held_out: Any, settings: Any) -> str:
        """Start the run in ``folder`` or go on with it; why it ended.

        Raises:
            SeedtuneError: one line; what was recorded until then is safe, and the marker is gone.
        """
        if (folder / JOURNAL_FILE).exists():
            settings = {}  # it has its own, perhaps of an older version of the app
        heard = self._listener.evaluating
        budget = Budget(check=lambda: self._rest(tuner.seconds))
        manners: dict[str, Any] = {"control": self.control, "budget": budget}
        self._heed_holds()  # those of before
        self._mark()
        self._running = True
        try:
            with model.tuner(
                folder, train, held_out, on_evaluation=heard, **settings, **manners
            ) as tuner:
                steps = tuner.history.settings.resolved_steps
                for report in tuner:
                    if self._starts:
                        self._starts = 0
                        self._keep_mark()
                    loss = report.loss if math.isfinite(report.loss) else -1.0
                    self._listener.stepped(report.step, steps, loss)
                return tuner.stop_reason or ""
        finally:
            with self._marking, contextlib.suppress(OSError):
                self._running = False
                self._marker.unlink(missing_ok=True)

    def _rest(self, worked: float) -> None:
        """Between steps: sleep as long as was computed since (``worked``: seconds in all), times
        what is not ours."""
        until = time.monotonic() + (worked - self._worked) * (1 / self._share - 1)
        self._worked = worked
        while (left := until - time.monotonic()) > 0 and self.control.stop_reason is None:
            time.sleep(min(left, _POLL_SECONDS))


def unfinished(marker: Path) -> Order | None:
    """What a killed session was doing, if that is to be gone on with."""
    try:
        order = json.loads(marker.read_text(encoding="utf-8"))
        kinds = {"kind": str, "share": float, "paused": bool, "starts": int}
        found = {name: kind(order[name]) for name, kind in kinds.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found["starts"] < MOST_STARTS else None
