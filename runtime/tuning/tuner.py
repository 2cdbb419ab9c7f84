"""The loop that an app embeds: iterate steps, stop any time, resume, take the tuned values.

::

    with Tuner(engine, Start.of(bundle), task, train, folder="run", eval_examples=test) as tuner:
        for report in tuner:
            print(report)
        values = tuner.tuned().values
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import Engine
from ..engines.memory import fit_passes
from ..errors import TuningError, warn
from ..estimators import (
    Estimator,
    RunContext,
    complete,
    make_estimator,
    part_of,
    shape_of,
    spec_of,
)
from ..journal import format as journal
from ..journal.history import PROGRAM, History, rounded
from ..journal.metrics import MetricsLog
from ..journal.run_folder import JOURNAL_FILE
from ..journal.start import Start
from ..journal.state import LiveRun
from ..scoring.batch_loss import Look
from ..scoring.evaluation import Evaluation, evaluate
from ..scoring.known_forwards import KnownForwards, known_bytes
from ..scoring.values import Values
from ..settings import Perturbing, Settings
from ..tasks import Encoded, Task, need_labels
from .batches import batch_indices
from .budget import Budget, Control
from .loss_noise import LossNoise, measure_loss_noise
from .resume import examples_sha256, resume

_log = logging.getLogger("seedtune")
"""How a run goes: its beginning, evaluations and end as INFO, each step as DEBUG."""


@dataclass(frozen=True)
class StepReport:
    """What one step did."""

    step: int
    """Steps done, this one included."""
    losses: tuple[float, ...] = field(repr=False)
    """Batch loss of each probe."""
    loss: float
    """Their mean."""
    scalars: tuple[float, ...] = field(repr=False)
    """As journaled (two-point: the projected gradient); empty for a skipped step, and for one of
    signs."""
    lr: float
    seconds: float
    """Seconds of the step, without its evaluation."""
    forwards: int
    """Forward passes of all steps of the run so far, one a probe."""
    skipped: str | None
    """Why the values were left alone; None if they moved."""
    evaluation: Evaluation | None
    """Held-out evaluation after this step, if one was due."""

    def __str__(self) -> str:
        told = f"step {self.step}: loss {self.loss:.4g}"
        if self.skipped is not None:
            told += f", skipped ({self.skipped})"
        if self.evaluation is not None:
            told += f", {self.evaluation}"
        return f"{told}, {self.seconds:.2f} s"


@dataclass(frozen=True)
class Tuned:
    """The state to ship."""

    values: Values = field(repr=False)
    step: int
    """Steps behind it; 0 is the start."""
    loss: float | None
    """Held-out loss, None if nothing was evaluated."""
    metric: float | None
    message: str
    """One sentence for the user, which says so if the run did not beat its start."""


class Tuner:
    """One session of a run. Use it as a context manager, or call ``close``.

    A folder with a journal is resumed, any other is started.

    Args:
        engine: runs the bundle's program.
        start: ``Start.of(bundle)``.
        task: collates and scores the examples.
        train: encoded training examples; their order is part of the run.
        folder: run folder.
        settings: by name, those of ``Settings`` and of the estimator's options; what is left out,
            or None, is chosen to suit a new run (see ``estimators.complete``) and stays as it is in
            a resumed one. Others than a run has are refused unless ``allow_changes`` (``steps``
            may always change).
        eval_examples: encoded held-out examples, which decide the best step.
        budget: when this session ends early.
        control: pauses and stops it from elsewhere.
        allow_changes: go on with other settings or examples, and record them.
        memory_limit: bytes that this process may hold; passes are cut to fit (see ``memory``). By
            default what the system has left.
        on_evaluation: called with the examples done and their total during evaluations.
        task_spec: what the journal is to say of ``task``, for whoever uses the run without it;
            another than a resumed run's is refused.

    Raises:
        JournalError: the folder cannot be written, is in use, damaged, or of another bundle.
        TuningError: no examples, or settings or examples that are not the run's, or memory for
            not even one example.
    """

    def __init__(
        self,
        engine: Engine,
        start: Start,
        task: Task,
        train: Sequence[Encoded],
        *,
        folder: Path | str,
        settings: Mapping[str, Any] | None = None,
        eval_examples: Sequence[Encoded] | None = None,
        budget: Budget | None = None,
        control: Control | None = None,
        allow_changes: bool = False,
        memory_limit: int | None = None,
        on_evaluation: Callable[[int, int], None] | None = None,
        task_spec: Mapping[str, Any] | None = None,
    ) -> None:
        if not train:
            raise TuningError("no training examples")
        self.folder = Path(folder)
        self.control = control or Control()
        self.loss_noise: LossNoise | None = None
        """Measured if this session started the run, with eps ``auto``."""
        self.stop_reason: str | None = None
        """Why the last iteration ended; None while it goes on or after a ``break``."""
        self._engine, self._task, self._start = engine, task, start
        self._train, self._eval = list(train), list(eval_examples or ())
        need_labels(self._train, "training example")
        need_labels(self._eval, "held-out example")
        self._lengths = np.array([example.length for example in self._train], dtype=np.int64)
        self._labels = np.array([example.gold for example in self._train], dtype=np.int64)
        self._budget = budget or Budget()
        self._on_evaluation = on_evaluation
        self._active = 0.0
        self._memory_limit = memory_limit
        if os.path.exists(self.folder / JOURNAL_FILE):
            self._run = self._resumed(settings, allow_changes, task_spec)
        else:
            header = self._new_header(settings or {}, task_spec)
            self._run = LiveRun.begin(self.folder, header, start)
        self._metrics = MetricsLog(self.folder, self.history.settings.resolved_steps)
        known = _forwards_stay(self.values)
        self._known = KnownForwards(self._engine) if known else None
        self._no_wait = False
        """Whether an evaluation takes no time, since its forwards are all known by now."""

    def _resumed(
        self,
        settings: Mapping[str, Any] | None,
        allow_changes: bool,
        task_spec: Mapping[str, Any] | None,
    ) -> LiveRun:
        data = {
            "train_sha256": examples_sha256(self._train),
            "eval_sha256": examples_sha256(self._eval),
        }
        run = resume(
            self.folder,
            self._start,
            asked=settings or {},
            data=data,
            task_spec=task_spec,
            context=self.context,
            allow_changes=allow_changes,
        )
        try:
            self._note_program(run)
            options = run.state.history.settings.options
            if run.state.values.keeps_words and not options.keeps_words:
                warn(
                    f"{run.writer.path}: forgot the words of its texts and keeps none of these "
                    f"({options.memory}=True, --{options.memory}: as it did before)"
                )
            state = run.state
            self._fit_passes(state.history.settings, state.estimator, state.values)
        except TuningError:
            run.close()
            raise
        return run

    def _note_program(self, run: LiveRun) -> None:
        """Say, and note in the journal, that losses come from another program from now on."""
        before, now = run.state.history.program, self._engine.program
        if before and now and before != now:
            warn(
                f"{run.writer.path}: the run goes on with the program {now}; its steps so far are "
                f"by {before}, whose losses differ by rounding (--engine chooses)"
            )
            run.commit(journal.Note(f"{PROGRAM}: {now}"))

    @property
    def context(self) -> RunContext:
        """What the run has to go by, for whoever asks which settings would fit it."""
        start, task = self._start, self._task
        return RunContext(
            answers=task.answers,
            head_rows=task.head_rows,
            hidden_width=self._engine.hidden_width,
            examples=len(self._train),
            entries=len(start.values),
            writes=task.writes,
            labels=task.head_labels,
            parts={
                name: kind for name, kind in start.kinds.items() if kind.fits(task, self._engine)
            },
            kinds=start.kinds,
            blocks=start.blocks,
            block_count=start.block_count,
        )

    def _fit_passes(self, settings: Settings, estimator: Estimator, values: Values) -> None:
        """Cut passes to the memory that the estimator and the part of its values leave."""
        part = 0 if values.part is None else values.part.memory_bytes
        part += spec_of(settings.estimator).holds(self.context)
        if _forwards_stay(values):
            part += known_bytes(self._engine, self._eval)
        self._bounds = self._start.bounds
        if self._start.memory is not None:
            self._bounds = fit_passes(
                self._bounds,
                self._start.memory,
                [*self._train, *self._eval],
                prefix=len(self._task.prefix),
                limit=self._memory_limit,
                reserve=estimator.memory_bytes(len(self._train)) + part,
                now=self._engine.memory(),
            )

    def _look(self, examples: Sequence[Encoded]) -> Look:
        return Look(self._engine, self._task, self._bounds, examples, self._start.kinds)

    def _new_header(
        self, asked: Mapping[str, Any], task_spec: Mapping[str, Any] | None
    ) -> journal.Header:
        extra: dict[str, Any] = {"examples": len(self._train)}
        if self._engine.program:
            extra[PROGRAM] = self._engine.program
        settings = complete(asked, self.context)
        own, shape = settings.options, shape_of(settings, self.context)
        part = part_of(settings, self.context)
        begun = self._start.tuned_from(part)
        estimator = make_estimator(settings, shape, begun.part)
        self._fit_passes(settings, estimator, begun)
        if isinstance(own, Perturbing) and own.eps == "auto":
            self.loss_noise = measure_loss_noise(
                self._look(self._batch(settings, 0)).mean_losses,
                self._start.values,
                seed=settings.seed,
            )
            settings = replace(settings, options=replace(own, eps=self.loss_noise.eps))
            extra["loss_noise"] = asdict(self.loss_noise)
        train_sha256 = examples_sha256(self._train)
        assert train_sha256 is not None
        return journal.Header(
            bundle_sha256=self._start.bundle_sha256,
            values_sha256=begun.sha256,
            entries=begun.entries,
            scalar_count=estimator.scalar_count,
            signs=estimator.signs,
            settings=settings.to_dict(),
            train_sha256=train_sha256,
            eval_sha256=examples_sha256(self._eval),
            metric={
                "name": str(self._task.metric_name),
                "higher_is_better": bool(self._task.higher_is_better),
                **({"rows": len(self._eval)} if self._task.labels and self._eval else {}),
            },
            shape=None if shape is None else dict(shape),
            part=None if part is None else dict(part),
            task=None if task_spec is None else dict(task_spec),
            extra=extra,
        )

    @property
    def history(self) -> History:
        """Settings in force, steps done, evaluations, skips."""
        return self._run.state.history

    @property
    def values(self) -> Values:
        """After the last step. They are live: copy them to keep them."""
        return self._run.state.values

    @property
    def cut_bytes(self) -> int:
        """Bytes of a torn tail that resuming cut off the journal."""
        return self._run.writer.cut_bytes

    @property
    def forwards(self) -> int:
        """Forward passes of all steps of the run so far, one a probe."""
        return self.history.steps * self._run.state.estimator.probes

    @property
    def seconds(self) -> float:
        """Active time of this session: steps and evaluations, pauses excluded."""
        return self._active

    def tuned(self) -> Tuned:
        """The state to ship: the best evaluated step, or the start if nothing beat it.

        After a ``break``, the last step is evaluated here if it was not, so that it can ship.
        Where ``control`` or the budget's ``check`` stopped the loop it was only evaluated if that
        takes no time, as of a readout after its first evaluation: who stops so does not want to
        wait. The message says it then.
        """
        left = self.stop_reason is None and self.control.stop_reason is None
        if (left or self._no_wait) and self._unjudged:
            self._evaluate_unless_stopped()
        history, best, values = self.history, self.history.best, self._run.state.best_values
        if best is None:
            message = f"the values after step {history.steps} ship; none was evaluated"
            return Tuned(values, history.steps, None, None, message)
        if best.step == 0:
            message = f"no evaluated step up to {history.steps} beat the start: the start ships"
        else:
            message = f"step {best.step} of {history.steps} is the best evaluated one and ships"
        if history.evaluations[-1].step < history.steps:
            message += f"; step {history.steps}, the last, was not evaluated"
        return Tuned(values, best.step, best.loss, best.metric, message)

    def __iter__(self) -> Iterator[StepReport]:
        """Run steps until the run, the budget or the control ends; ``stop_reason`` says which.

        Raises:
            JournalError: a record could not be written; the journal ends at a whole record.
            TuningError: too many steps in a row were skipped.
        """
        self.stop_reason = None
        done, wanted = self.history.steps, self.history.settings.resolved_steps
        _log.info("%s: from step %d to %d", self.folder, done, wanted)
        self._evaluate_if_due()
        while (reason := self._why_stop()) is None:
            report = self.step()
            yield report
        if (reason.evaluate or self._no_wait) and self._unjudged:
            self.evaluate()
        self._run.end(reason.text)
        self.stop_reason = reason.text
        _log.info("%s: %s", self.folder, reason.text)

    def step(self) -> StepReport:
        """One step, and the evaluation that is due after it."""
        began = time.monotonic()
        history, at = self.history, self.history.next_step
        look = self._look(self._batch(history.settings, at.step))
        measured = self._run.state.estimator.measure(look, self.values, at)
        losses, scalars = measured.losses.mean(axis=1), measured.scalars
        mean = float(losses.mean())
        skip = history.judge(losses, scalars)
        if skip is None and history.loss_limit is None:
            self._run.commit(journal.Reference(rounded(mean)))
        signs = scalars.dtype == np.uint8
        exact = () if skip or signs else tuple(float(scalar) for scalar in scalars)
        step = journal.Signs(scalars.tobytes()) if signs else journal.Step(exact)
        self._run.commit(skip or step)
        seconds = time.monotonic() - began
        self._active += seconds
        self._metrics.append(
            kind="step",
            step=history.steps,
            loss=mean,
            skipped=skip and journal.SKIP_REASONS[skip.reason],
            seconds=seconds,
        )
        advice = skip and history.giving_up(skip)
        if advice:
            self._run.end(advice)
            self.stop_reason = advice
            raise TuningError(f"{self._run.writer.path}: {advice}")
        report = StepReport(
            step=history.steps,
            losses=tuple(float(loss) for loss in losses),
            loss=mean,
            scalars=exact,
            lr=at.lr,
            seconds=seconds,
            forwards=self.forwards,
            skipped=skip and journal.SKIP_REASONS[skip.reason],
            evaluation=self._evaluate_if_due(),
        )
        _log.debug("%s: %s", self.folder, report)
        return report

    def evaluate(self) -> Evaluation:
        """Evaluate the current values on the held-out examples, now, and journal the result.

        Raises:
            TuningError: the tuner was given no held-out examples.
        """
        if not self._eval:
            raise TuningError("no held-out examples to evaluate on")
        return self._evaluate(lambda done, total: None)

    def _evaluate(self, between: Callable[[int, int], None]) -> Evaluation:
        paused = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal paused
            if self._on_evaluation is not None:
                self._on_evaluation(done, total)
            waiting = time.monotonic()
            between(done, total)
            paused += time.monotonic() - waiting

        self._run.writer.sync()  # an evaluation can take long
        began = time.monotonic()
        found = evaluate(
            self._engine,
            self._task,
            self._eval,
            self.values,
            self._bounds,
            progress,
            self._known,
        )
        self._no_wait = self._known is not None and self._known.complete
        seconds = time.monotonic() - began - paused
        self._active += seconds
        self._run.commit(journal.Evaluation(rounded(found.loss), rounded(found.metric)))
        self._metrics.append(
            kind="evaluation",
            step=self.history.steps,
            loss=float(found.loss),
            metric=float(found.metric),
            seconds=seconds,
        )
        _log.info("%s: step %d, %s", self.folder, self.history.steps, found)
        return found

    def close(self) -> None:
        """Sync the journal and release the run. Calling it again does nothing."""
        self._metrics.close()
        self._run.close()

    def __enter__(self) -> "Tuner":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _batch(self, settings: Settings, step: int) -> list[Encoded]:
        chosen = batch_indices(
            step,
            seed=settings.seed,
            lengths=self._lengths,
            batch_size=settings.batch_size,
            labels=self._labels,
        )
        return [self._train[index] for index in chosen]

    def _evaluated_now(self) -> bool:
        done = self.history.evaluations
        return bool(done) and done[-1].step == self.history.steps

    @property
    def _unjudged(self) -> bool:
        """Whether the last step could be evaluated and was not."""
        return bool(self._eval) and self.history.steps > 0 and not self._evaluated_now()

    def _evaluate_if_due(self) -> Evaluation | None:
        """Evaluate at the start, at the end and at multiples of ``eval_every``, once each."""
        steps, settings = self.history.steps, self.history.settings
        due = steps in (0, settings.resolved_steps) or (
            settings.eval_every and steps % settings.eval_every == 0
        )
        if not (self._eval and due) or self._evaluated_now():
            return None
        return self._evaluate_unless_stopped()

    def _evaluate_unless_stopped(self) -> Evaluation | None:
        """Evaluate; None where ``control`` stopped it half-way."""

        def heed_control(done: int, total: int) -> None:
            self.control.wait()
            stopped = self.control.stop_reason is not None
            if stopped and done < total and not self._no_wait:
                raise _Abandoned

        try:
            return self._evaluate(heed_control)
        except _Abandoned:
            return None  # whoever stopped does not want to wait

    def _why_stop(self) -> "_Stop | None":
        """Why no step follows, after waiting while paused."""
        if self.control.paused:
            self._run.writer.sync()
            self.control.wait()
        if self.control.stop_reason is not None:
            return _Stop(self.control.stop_reason, evaluate=False)
        if self.history.steps >= self.history.settings.resolved_steps:
            return _Stop(f"all {self.history.settings.steps} steps done", evaluate=True)
        spent = self._budget.exhausted(
            seconds=self._active,
            forwards=self.forwards,
            step_forwards=self._run.state.estimator.probes,
        )
        if spent is not None:
            return _Stop(spent, evaluate=True)
        asked = self._budget.check() if self._budget.check else None
        return None if asked is None else _Stop(asked, evaluate=False)


def _forwards_stay(values: Values) -> bool:
    """Whether only a part moves, which no forward knows of, so that forwards can be kept."""
    return values.part is not None and not values.part.enters_program


class _Abandoned(Exception):
    """A due evaluation was given up for a stop."""


@dataclass(frozen=True)
class _Stop:
    text: str
    evaluate: bool
    """Whether there is time for a last evaluation; not for a signal or a hot device."""
