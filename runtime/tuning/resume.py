"""Going on with a run: which other settings, examples and tasks it may have from now on."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TuningError
from ..estimators import RunContext, changed, fit, fixed_settings
from ..journal.format import FORGOTTEN, Change
from ..journal.start import Start
from ..journal.state import LiveRun, RunState
from ..settings import Options
from ..tasks import Encoded

_ROWS = {
    "train_sha256": "training rows than --train gives",
    "eval_sha256": "held-out rows than --data gives",
}


def resume(
    folder: Path,
    start: Start,
    *,
    asked: Mapping[str, Any],
    data: Mapping[str, str | None],
    task_spec: Mapping[str, Any] | None,
    context: RunContext,
    allow_changes: bool,
) -> LiveRun:
    """Go on with a run; a torn tail is cut and the values are replayed.

    Args:
        asked: settings by name; a missing one, None and ``auto`` keep the run's own.
        data: hashes of the encoded examples, as the header names them.
        task_spec: as in ``Tuner``.
        context: what the run now has to go by.

    Raises:
        JournalError: damaged, in use, or of another bundle.
        TuningError: settings or examples other than the run's, and not ``allow_changes``.
    """
    run = LiveRun.open(folder, start)
    try:
        path, settings = run.state.path, run.state.history.settings
        fixed, size = fixed_settings(settings), settings.batch_size
        if "batch_size" in fixed and context.examples < size:
            raise TuningError(
                f"{path}: a step of the run takes {size} training examples, "
                f"{context.examples} are given: give more (--train), or start a new run in "
                "another folder"
            )
        _same_task(run.state.header.task, task_spec, path)
        changes = _changes(run.state, asked, data, context)
        free = ("steps", settings.options.memory)
        for field, before, now in changes:
            if field in free or before == FORGOTTEN:
                continue
            if field in fixed or not allow_changes:
                advice = "give the same, or allow changes (--allow-changes)"
                if field in fixed:
                    advice = "give the same, or start a new run in another folder"
                what = f"the run has {field}={_short(before)}, not {_short(now)}"
                if field in _ROWS:
                    what = f"the run has other {_ROWS[field]} ({field} {_short(before)})"
                raise TuningError(f"{path}: {what}; {advice}")
        for field, _, now in changes:
            run.commit(Change(field, now))
    except BaseException:
        run.close()
        raise
    return run


def _changes(
    state: RunState, asked: Mapping[str, Any], data: Mapping[str, str | None], context: RunContext
) -> list[tuple[str, Any, Any]]:
    """``(field, value of the run, wanted value)`` where they differ."""
    wanted = state.history.settings
    have: dict[str, Any] = {**wanted.to_dict(), **state.history.data}
    want = {**have, **data}
    asked = {name: value for name, value in asked.items() if value not in (None, "auto")}
    if asked.get("estimator", have["estimator"]) != have["estimator"]:
        want["estimator"] = asked["estimator"]  # refused, whatever would fit it
    elif asked:
        wanted = fit(changed(wanted, asked), context)
        want.update(wanted.to_dict())
    _check_memory(state, wanted.options)
    if not wanted.options.keeps_words:  # hashes that were forgotten with the words stay so
        want |= {name: FORGOTTEN for name in data if have[name] == FORGOTTEN}
    return [(field, have[field], want[field]) for field in have if have[field] != want[field]]


def _check_memory(state: RunState, wanted: Options) -> None:
    """Refuse to begin a memory of words, or to leave one as it is."""
    if wanted.keeps_words and not state.values.keeps_words:
        raise TuningError(
            f"{state.path}: the run was begun without a memory of words; start one with "
            f"{wanted.memory} in another folder"
        )
    if state.history.settings.options.keeps_words and not wanted.keeps_words:
        raise TuningError(
            f"{state.path}: the run keeps words of its texts; 'seedtune journal forget "
            "--all' takes them out, and it keeps none from then on"
        )


def examples_sha256(examples: Sequence[Encoded]) -> str | None:
    """Hash of encoded examples in order; None for none.

    Covers what the loss depends on: tokens, positions, candidates and the gold answer.
    """
    if not examples:
        return None
    digest = hashlib.sha256()
    for example in examples:
        for name in ("tokens", "positions", "candidates", "gold"):
            array = np.asarray(getattr(example, name))
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _same_task(
    known: Mapping[str, Any] | None, given: Mapping[str, Any] | None, path: Path
) -> None:
    """Refuse to go on with another task; how long texts are cut shows in the examples' hash."""
    if known is None or given is None:
        return
    if known["spec"] != given["spec"]:
        raise TuningError(
            f"{path}: the run has the task {known['spec']}, not {given['spec']}; give the same "
            "(or no --task), or start a new run in another folder"
        )


def _short(value: Any) -> str:
    """A setting for a message; hashes cut short."""
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text
