"""What ``tune`` says at the end: how good the run is on rows that chose nothing, what it writes,
what the curve says. The same goes into the run folder, for ``seedtune report``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate import answers_of, figures_of
from .held_out import HeldOut
from .inputs import spaced

if TYPE_CHECKING:
    from seedtune.runtime.bundle import Bounds
    from seedtune.runtime.model import Model
    from seedtune.runtime.scoring.evaluation import Evaluation
    from seedtune.runtime.scoring.known_forwards import KnownForwards
    from seedtune.runtime.scoring.values import Values
    from seedtune.runtime.tasks import Encoded, OnLong, Prediction
    from seedtune.runtime.tasks.rows import Row
    from seedtune.runtime.tuning.tuner import Tuner

SHOWN_ROWS = 20
"""Held-out rows whose answers before and after are kept for the report."""
_SAMPLES, _TOKENS = 4, 32
"""Prompts that are gone on from, and tokens of each text: some seconds at the end of a run."""


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
    from seedtune.runtime.engines.memory import peak_resident_bytes
    from seedtune.runtime.journal.metrics import read_metrics
    from seedtune.runtime.journal.run_folder import VALUES_FILE

    from ..reports.curves import duration, read_curve, seconds_of_as_many_again
    from ..reports.outcome_file import write_outcome

    history, tuned, metric = tuner.history, tuner.tuned(), model.task.metric_name
    file = tuner.folder / VALUES_FILE
    before_values = model.values
    model.load(tuned)
    model.save(file)
    # As the choosing rows saw the start and what ships.
    start = next((item for item in history.evaluations if item.step == 0), None)
    before = None if start is None else {"loss": start.loss, metric: start.metric}
    after: dict[str, Any] | None = None
    if tuned.metric is not None:
        after = {"step": tuned.step, "loss": tuned.loss, metric: tuned.metric}
    rows: list[dict[str, Any]] = []
    answers: dict[str, Any] = {}
    samples: list[dict[str, str]] = []
    judged = bool(held_out.judging) and tuner.control.stop_reason is None
    if judged:
        passes = _passes(model, held_out, memory_limit)
        first, best, rows = _judged(model, held_out, before_values, *passes, progress)
        before, after = figures_of(first, metric), figures_of(best, metric)
        _judged_again(tuner.folder, model, held_out, best, *passes, on_long)
        after = {"step": tuned.step, **after}
        answers = answers_of(best)
        samples = _samples(model, held_out.judging, before_values)
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
        "bundle": {
            "sha256": model.bundle.sha256,
            "model": model.bundle.manifest["model"]["name"],
        },
        "rows": rows,
        "samples": samples,
        "remembered": [],
    }
    if tuned.values.keeps_words:
        kept["remembered"] = [each._asdict() for each in model.remembered(tuner.folder)]
    write_outcome(tuner.folder, {**result, **kept})
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


def _samples(model: Model, examples: list[Encoded], before: Values) -> list[dict[str, str]]:
    """Prompt, the text that is really behind it, and what the model writes there under ``before``
    and under the values in use; nothing where it cannot write here, or its task writes nothing."""
    from seedtune.runtime.errors import EngineError, TuningError

    if not model.task.writes or not examples:
        return []
    chosen = spaced(examples, _SAMPLES)
    prompts = [each.tokens[0, : each.positions[0, 1] + 1].tolist() for each in chosen]
    after = model.values
    try:
        model.values = before
        first = _written(model, prompts)
        model.values = after
        second = _written(model, prompts)
    except (EngineError, TuningError):  # the program only scores, or there is no memory for a text
        return []
    finally:
        model.values = after
    decode = model.bundle.tokenizer().decode
    return [
        {
            "prompt": decode(prompt),
            "right": decode(each.candidates[:, 0].tolist()),
            "before": one,
            "after": other,
        }
        for prompt, each, one, other in zip(prompts, chosen, first, second, strict=True)
    ]


def _written(model: Model, prompts: list[list[int]]) -> list[str]:
    from seedtune.runtime.writing import Manner

    writer = model.writer()
    manner = Manner(_TOKENS, stop=() if model.task.ends else ("\n",))
    return ["".join(writer.write(prompt, manner)) for prompt in prompts]
