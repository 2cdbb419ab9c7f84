"""What Kotlin calls. Every answer is JSON: ``{"ok": ...}``, or ``{"error": "one line"}``."""

import errno
import functools
import json
import math
import os
import shutil
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.errors import BundleError, SeedtuneError, TuningError
from seedtune.runtime.files import replace_file
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.operations import rewind
from seedtune.runtime.journal.run_folder import JOURNAL_FILE
from seedtune.runtime.journal.state import history_of
from seedtune.runtime.model import Model, open_model

from .material import Material, Messages, Writing
from .session import PAUSED_BY_USER, Listener, Order, Session, unfinished

SORT, WRITE = "sort", "write"
_MATERIAL: dict[str, type[Material]] = {SORT: Messages, WRITE: Writing}
_CHOSEN, _MARKER = "bundle.json", "learning.json"
_CURRENT = "current.json"


def _answered(method: Callable[..., Any]) -> Callable[..., str]:
    """Answer in JSON; whatever goes wrong becomes one line, and the app goes on."""

    @functools.wraps(method)
    def answer(*arguments: Any) -> str:
        try:
            return json.dumps({"ok": method(*arguments)})
        except Exception as error:
            return json.dumps({"error": arguments[0]._line_of(error)})

    return answer


class Waiting(Protocol):
    """Who waits for the check of a bundle; in the app, a Kotlin object."""

    def checked(self, done: int, total: int) -> None:
        """So many bytes are checked."""


class App:
    """All of the app's state, in one folder. One session of learning at a time."""

    def __init__(self, root: str, engine: str = "executorch-java", **settings: Any) -> None:
        """
        Args:
            root: the app's own folder, made if it is not there.
            engine: runs the bundle's program.
            settings: of runs, by name, in place of what suits the task.
        """
        self._root, self._engine, self._settings = Path(root), engine, settings
        self._root.mkdir(parents=True, exist_ok=True)
        os.environ["SEEDTUNE_CACHE"] = str(self._root / "cache")
        warnings.simplefilter("ignore")  # hints for whoever writes a task
        self._lock = threading.RLock()
        self._bundle: Bundle | None = None
        self._model: Model | None = None
        self._model_key: tuple[str, str] | None = None
        self._session: Session | None = None
        self._holds: dict[str, str] = {}

    # The bundle

    @_answered
    def take_bundle(self, archive: str, waiting: Waiting) -> dict[str, Any]:
        """Check a ``.seedtune`` file that was copied here, unpack it and use it from now on.

        The file is gone afterwards, used or not. One that is refused leaves the bundle in use.

        Args:
            waiting: hears how many bytes are checked, of those of the file and its unpacked parts.
        """
        file = Path(archive)
        with self._lock:
            self._idle()
            try:
                bundle = open_bundle(file, cache=self._root, progress=waiting.checked)
                replace_file(self._root / _CHOSEN, json.dumps({"sha256": bundle.sha256}).encode())
            except BundleError as error:
                raise BundleError(str(error).replace(str(file), "the file")) from error
            finally:
                file.unlink(missing_ok=True)
            self._close()
            self._bundle = bundle
            for other in bundle.path.parent.iterdir():
                if other != bundle.path:
                    shutil.rmtree(other, ignore_errors=True)
            return self._about_bundle(bundle)

    def _opened(self) -> Bundle:
        if self._bundle is None:
            try:
                sha256 = json.loads((self._root / _CHOSEN).read_text())["sha256"]
            except FileNotFoundError:
                raise TuningError("choose a model file (.seedtune) first") from None
            self._bundle = open_bundle(self._root / "bundles" / sha256, sha256=sha256)
        return self._bundle

    @staticmethod
    def _about_bundle(bundle: Bundle) -> dict[str, Any]:
        return {
            "name": bundle.manifest["model"]["name"],
            "sha256": bundle.sha256,
            "megabytes": round(bundle.program_path.stat().st_size / 1e6),
        }

    # What it learns from

    @_answered
    def name_labels(self, names: str) -> None:
        """Kinds of messages, separated by commas."""
        Messages(self._root).name_labels(names.split(","))

    @_answered
    def add_messages(self, text: str) -> int:
        """A message a line; how many were new."""
        return Messages(self._root).add(text)

    @_answered
    def tap(self, place: int, label: str | None) -> None:
        """Label message number ``place``."""
        Messages(self._root).tap(place, label)

    @_answered
    def messages(self) -> dict[str, Any]:
        """Kinds, and all messages with theirs."""
        kept = Messages(self._root)
        return {"labels": kept.labels, "messages": kept.messages}

    @_answered
    def write(self, text: str) -> int:
        """More text to learn from; how many pieces all of it makes."""
        writing = Writing(self._root)
        writing.add(text)
        return len(writing.rows())

    # Learning

    def learn(self, kind: str, share: float, listener: Listener) -> str:
        """Learn until done, stopped or failed, in the calling thread.

        Args:
            kind: empty: go on with what was being learned when the process was killed.

        Returns:
            Why it ended, in one line; no JSON. What was learned stays.
        """
        try:
            with self._lock:
                self._idle()
                order: Order | None = {"kind": kind, "share": share, "paused": False, "starts": 0}
                if not kind:
                    order = unfinished(self._root / _MARKER)
                if order is None:
                    return "there was nothing to go on with"
                kind = order["kind"]
                self._holds.pop(PAUSED_BY_USER, None)
                if order["paused"]:
                    self._holds[PAUSED_BY_USER] = "paused"
                material = _MATERIAL[kind](self._root)
                train, held_out = material.split()
                session = Session(self._root / _MARKER, order, listener, self._holds)
                self._session = session  # before what takes long, in which it may be stopped
            try:
                with self._lock:
                    bundle, model = self._opened(), self._model_of(material)
                folder = self._root / f"run-{kind}-{material.key(bundle.sha256)}"
                current = {"folder": folder.name, "spec": material.spec(), "of": bundle.sha256}
                replace_file(self._root / f"{kind}-{_CURRENT}", json.dumps(current).encode())
                settings = material.settings(len(train)) | self._settings
                return session.run(model, folder, train, held_out, settings)
            except Exception:
                with self._lock:
                    self._close()  # a program that failed is opened anew
                raise
            finally:
                self._session = None
        except Exception as error:
            return self._line_of(error)

    @_answered
    def pause(self, reason: str | None, who: str = PAUSED_BY_USER) -> None:
        """Rest after the step under way, or (None) go on.

        Args:
            who: rests for each are counted apart; the phone's state has its own, which lasts.
        """
        session = self._session
        if session is not None:
            session.hold(who, reason)
        elif reason is not None:
            self._holds[who] = reason
        else:
            self._holds.pop(who, None)

    @_answered
    def stop(self) -> None:
        """End the session after its step; it can be gone on with."""
        session = self._session
        if session is not None:
            session.control.stop("stopped")

    # What came of it

    @_answered
    def state(self) -> dict[str, Any]:
        """All that a screen shows without a task."""
        chosen, idle = (self._root / _CHOSEN).exists(), self._session is None
        return {
            "bundle": self._about_bundle(self._opened()) if chosen else None,
            "unfinished": idle and unfinished(self._root / _MARKER) is not None,
        }

    @_answered
    def progress(self, kind: str) -> dict[str, Any] | None:
        """Steps, losses and evaluations of the current run; None before there is one."""
        folder = self._run_folder(kind)
        if folder is None:
            return None
        history = history_of(read_journal(folder))
        lines = read_metrics(folder, steps=history.steps)
        best = history.best
        return {
            "steps": history.steps,
            "losses": [[x["step"], x["loss"]] for x in lines if x["kind"] == "step" and x["loss"]],
            "evaluations": [[e.step, e.metric] for e in history.evaluations],
            "best": 0 if best is None else best.step,
            "fresh": folder.name.endswith(_MATERIAL[kind](self._root).key(self._opened().sha256)),
        }

    @_answered
    def undo(self, kind: str, step: int) -> None:
        """Go back to the values after ``step`` steps."""
        with self._lock:
            self._idle()
            folder = self._run_folder(kind)
            if folder is None:
                raise TuningError("there is nothing to undo yet")
            rewind(folder, step)

    @_answered
    def predict(self, kind: str, text: str) -> dict[str, Any]:
        """The tuned model's answer beside the model's as it came.

        For messages the kind and how sure; for writing how many words it would hesitate between
        at each (perplexity), and how it goes on, where the bundle can write.
        """
        with self._lock:
            if self._session is not None and self._session.kind != kind:
                raise TuningError("it is learning something else; stop that first")
            model, folder = self._model_of(_MATERIAL[kind](self._root)), self._run_folder(kind)
            if folder is None:
                model.reset()
            else:
                model.load(folder)
            row = {"text": text.strip()}
            after, step = _shown(model.predict(row)), model.step
            if kind == WRITE and model.bundle.generation is not None:
                after["written"] = "".join(model.generate(row["text"], max_tokens=32))
            model.reset()
            before = model.predict(row)
            return {"before": _shown(before), "after": after, "step": step}

    @_answered
    def remembered(self) -> list[dict[str, Any]]:
        """The texts of the user's writing whose words it keeps, the newest first."""
        with self._lock:
            folder = self._run_folder(WRITE)
            if folder is None:
                return []
            found = self._model_of(Writing(self._root)).remembered(folder)
            return [{"text": each.text, "words": each.words} for each in found]

    @_answered
    def forget(self, text: str | None) -> None:
        """Forget the writing with this in it, or (None) all: the words that are kept of it, and the
        pieces to learn from."""
        with self._lock:
            self._idle()
            folder, writing = self._run_folder(WRITE), Writing(self._root)
            if folder is None:
                raise TuningError("there is nothing to forget yet")
            self._model_of(writing).forget(folder, [] if text is None else [text])
            writing.drop(text or "")

    @_answered
    def wipe(self) -> None:
        """Delete everything: model, messages, texts, what was learned."""
        with self._lock:
            self._idle()
            self._close()
            self._bundle = None
            shutil.rmtree(self._root)
            self._root.mkdir()

    def _line_of(self, error: Exception) -> str:
        """What a person can do with an error, in one line."""
        if os.strerror(errno.ENOSPC) in str(error):
            return "the phone's storage is full: free some and go on; nothing is lost"
        if isinstance(error, MemoryError):
            return "the phone's memory is full: close other apps and go on; nothing is lost"
        if isinstance(error, SeedtuneError):
            line = " ".join(str(error).split())
        elif isinstance(error, OSError):
            line = f"{error.filename or 'a file'}: {error.strerror or error}"
        else:
            traceback.print_exc()
            line = f"seedtune has a defect: {type(error).__name__}: {str(error)[:200]}"
        return line.replace(f"{self._root}/", "")

    def _idle(self) -> None:
        if self._session is not None:
            raise TuningError("it is learning; stop that first")

    def _run_folder(self, kind: str) -> Path | None:
        """Of the run that was begun last, if it is one of the task as it is now."""
        try:
            current = json.loads((self._root / f"{kind}-{_CURRENT}").read_text())
        except (OSError, ValueError):
            return None
        folder = self._root / str(current["folder"])
        now = [_MATERIAL[kind](self._root).spec(), self._opened().sha256]
        same = [current["spec"], current["of"]] == now
        return folder if same and (folder / JOURNAL_FILE).exists() else None

    def _model_of(self, material: Material) -> Model:
        """The model with this task; its program is opened once and kept."""
        bundle = self._opened()
        key = (bundle.sha256, json.dumps(material.spec()))
        if self._model is None or self._model_key != key:
            self._close()
            made = open_model(bundle, task=material.spec(), on_long="truncate", engine=self._engine)
            self._model, self._model_key = made, key
        return self._model

    def _close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = self._model_key = None


def _shown(prediction: Any) -> dict[str, Any]:
    if prediction.answer is None:
        return {"perplexity": math.exp(min(prediction.scores["nll"], 700))}
    return {"answer": prediction.answer, "sure": prediction.scores[prediction.answer]}
