"""What ``tune`` says at the end: how good the run is on rows that chose nothing, and what the curve
says. The same goes into the run folder, for ``seedtune report``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import answers_of, figures_of
from .held_out import HeldOut
from .inputs import spaced
from .samples import samples_of

if TYPE_CHECKING:
    from seedtune.runtime.bundle import Bounds
    from seedtune.runtime.model import Model
    from seedtune.runtime.scoring.evaluation import Evaluation
    from seedtune.runtime.scoring.known_forwards import KnownForwards
    from seedtune.runtime.tasks import OnLong, Prediction
    from seedtune.runtime.tasks.rows import Row
    from seedtune.runtime.tuning.tuner import Tuner

SHOWN_ROWS = 20
"""Held-out rows whose answers before and after are kept for the report."""


def outcome_of(
    tuner: Tuner,
    model: Model,
    held_out: HeldOut,
    seconds: float,
    *,
    on_long: OnLong,
    memory_limit: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The run's result; loads what ships into ``model`` and writes it into the run folder.

    Rows are judged unless a signal ended the session: whoever sends one does not want to wait. The
    judged figure must come out again from the folder alone.

    Raises:
        TuningError: the run folder or the values file gives another model than the judged one.
    """
    from seedtune.runtime.engines.system_memory import peak_resident_bytes
    from seedtune.runtime.journal.metrics import read_metrics
    from seedtune.runtime.journal.run_folder import VALUES_FILE

    from ..reports.curves import duration, read_curve, seconds_of_as_many_again

    history, tuned, metric = tuner.history, tuner.tuned(), model.task.metric_name
    file = tuner.folder / VALUES_FILE
    before_values = model.values
    model.load(tuned)
    model.save(file)
    before, after = _chosen_by(tuner, metric), _best(tuner, metric)
    rows: list[dict[str, Any]] = []
    answers: dict[str, Any] = {}
    samples: list[dict[str, str]] = []
    judged = bool(held_out.judging) and tuner.control.stop_reason is None
    if judged:
        passes = _passes(model, held_out, memory_limit)
        start, best, rows = _judged(model, held_out, before_values, *passes, progress)
        before, after = figures_of(start, metric), figures_of(best, metric)
        _judged_again(tuner.folder, model, held_out, best, *passes, on_long)
        after = {"step": tuned.step, **after}
        answers = answers_of(best)
        samples = samples_of(model, held_out.judging, before_values)
    lines = read_metrics(tuner.folder, steps=history.steps)
    curve = read_curve(history, [line for line in lines if line["kind"] == "step"])
    again = seconds_of_as_many_again(history, lines)
    asked = history.settings.to_dict()
    result: dict[str, Any] = {
        "run": str(tuner.folder),
        "steps": history.steps,
        "skipped": history.skipped,
        "forwards": tuner.forwards,
        "seconds": seconds,
        "stop_reason": tuner.stop_reason,
        **{name: asked[name] for name in ("eps", "lr") if name in asked},
        "before": before,
        "after": after,
        **answers,
        "judged_rows": len(held_out.judging) if judged else 0,
        "choosing_rows": len(held_out.choosing),
        "curve": curve.text,
        "twice_as_many": None if again is None else f"{duration(again)} more{_how_to_go_on(tuner)}",
        "message": tuned.message,
        "values": str(file),
        "values_sha256": tuned.values.sha256,
        "peak_rss_bytes": peak_resident_bytes(),
    }
    kept = {
        "bundle": _bundle(model),
        "rows": rows,
        "samples": samples,
        "remembered": [],
    }
    if tuned.values.keeps_words:
        kept["remembered"] = [each._asdict() for each in model.remembered(tuner.folder)]
    _write(tuner.folder, {**result, **kept})
    return result


def _how_to_go_on(tuner: Tuner) -> str:
    """The option that makes a run longer, where one does: some see each row once."""
    from seedtune.runtime.estimators import changed, fit

    history = tuner.history
    more = 2 * history.settings.resolved_steps
    longer = fit(changed(history.settings, {"steps": more}), tuner.context)
    if longer.resolved_steps <= history.settings.resolved_steps:
        return ", with twice as many training rows: each row is used once"
    return f" (--steps {longer.resolved_steps})"


def _chosen_by(tuner: Tuner, metric: str) -> dict[str, Any] | None:
    """The start as the choosing rows saw it."""
    start = next((item for item in tuner.history.evaluations if item.step == 0), None)
    return None if start is None else {"loss": start.loss, metric: start.metric}


def _best(tuner: Tuner, metric: str) -> dict[str, Any] | None:
    tuned = tuner.tuned()
    if tuned.metric is None:
        return None
    return {"step": tuned.step, "loss": tuned.loss, metric: tuned.metric}


def _passes(
    model: Model, held_out: HeldOut, limit: int | None
) -> tuple[Bounds, KnownForwards | None]:
    """How passes over the judging rows are cut and, where a readout may leave the sensitive values
    as they were and there is room, what keeps their forwards: one then serves before and after."""
    from seedtune.runtime.engines.memory import PassMemory, fit_passes
    from seedtune.runtime.errors import TuningError
    from seedtune.runtime.scoring.known_forwards import KnownForwards, known_bytes

    fit = partial(
        fit_passes,
        model.bundle.bounds,
        PassMemory.of_bundle(model.bundle),
        held_out.judging,
        prefix=len(model.task.prefix),
        limit=limit,
    )
    if model.task.head_rows and model.engine.hidden_width:
        # Its memory is no reason to judge nothing at the end of a run.
        with suppress(TuningError):
            bounds = fit(reserve=known_bytes(model.engine, held_out.judging))
            return bounds, KnownForwards(model.engine)
    return fit(), None


def _judged(
    model: Model,
    held_out: HeldOut,
    before: Any,
    bounds: Bounds,
    known: KnownForwards | None,
    progress: Callable[[int, int], None],
) -> tuple[Evaluation, Evaluation, list[dict[str, Any]]]:
    """Evaluations before and after, and both answers to some rows."""
    from seedtune.runtime.scoring.evaluation import evaluate, predict

    found, answers = [], []
    shown = spaced(range(len(held_out.judging)), SHOWN_ROWS)
    some = [held_out.judging[number] for number in shown]
    total = 2 * len(held_out.judging)
    for turn, values in enumerate((before, model.values)):

        def shown_as_one(done: int, of: int, before: int = turn) -> None:
            progress(before * of + done, total)

        asked = model.engine, model.task, held_out.judging, values, bounds
        found.append(evaluate(*asked, shown_as_one, known=known))
        asked = model.engine, model.task, some, values, bounds
        answers.append(predict(*asked, known=known))
    rows = [held_out.rows[number] for number in shown]
    return found[0], found[1], _rows(model, rows, answers)


def _judged_again(
    run: Path,
    model: Model,
    held_out: HeldOut,
    judged: Evaluation,
    bounds: Bounds,
    known: KnownForwards | None,
    on_long: OnLong,
) -> None:
    """Load the run the way whoever uses it will, with its own task, and compare the figures.

    Where no forwards are kept (texts) that is a whole evaluation more. Equal hashes would cost
    nothing and show less: that an answer comes of more than what is hashed was once the mistake.
    """
    import numpy as np
    from seedtune.runtime.errors import TuningError
    from seedtune.runtime.journal.run_folder import VALUES_FILE
    from seedtune.runtime.model import open_model
    from seedtune.runtime.scoring.evaluation import evaluate
    from seedtune.runtime.scoring.values import Values

    again = open_model(model.bundle, on_long=on_long)
    again.load(run / VALUES_FILE)
    saved = again.values
    again.load(run)
    task, rows = again.task, again.encode(held_out.rows)
    found = evaluate(model.engine, task, rows, again.values, bounds, known=known)
    now, then = (_shown(each, task.metric_name) for each in (found, judged))
    if now != then:
        raise TuningError(
            f"{run}: loaded again, the run has {now}, but was judged to have {then}: what was "
            "saved is not what was tuned; please report it"
        )
    rounded = again.values.sensitive.astype(np.float16).astype(np.float32)
    if saved.sha256 != Values(rounded, again.values.part).sha256:
        raise TuningError(f"{run / VALUES_FILE}: does not hold the values that ship; report this")


def _shown(found: Evaluation, metric: str) -> str:
    """The digits that are shown; a library may round the last ones otherwise at another time."""
    return f"loss {found.loss:.6g}, {metric} {found.metric:.6g}"


def _rows(
    model: Model, rows: Sequence[Row], answers: Sequence[Sequence[Prediction]]
) -> list[dict[str, Any]]:
    label = (model.task_spec or {}).get("label_field")
    return [
        {
            "fields": {name: str(value) for name, value in row.items() if name != label},
            "right": None if label is None else str(row[label]),
            "before": {"answer": one.answer, "scores": one.scores},
            "after": {"answer": other.answer, "scores": other.scores},
        }
        for row, one, other in zip(rows, *answers, strict=False)
    ]


def _bundle(model: Model) -> dict[str, Any]:
    return {"sha256": model.bundle.sha256, "model": model.bundle.manifest["model"]["name"]}


def _write(folder: Path, content: dict[str, Any]) -> None:
    """It holds texts of rows: for the owner's eyes alone, like the journal beside it."""
    from seedtune.runtime.errors import JournalError
    from seedtune.runtime.files import replace_file
    from seedtune.runtime.journal.run_folder import OUTCOME_FILE

    from .output import plain

    file = folder / OUTCOME_FILE
    try:
        text = json.dumps(plain(content), ensure_ascii=False, indent=1)
        replace_file(file, text.encode("utf-8", "replace"), private=True)
    except OSError as error:
        raise JournalError(f"{file}: cannot be written ({error.strerror})") from error
