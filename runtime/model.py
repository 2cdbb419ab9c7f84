"""What an app opens: a bundle with its task and engine, to tune, to evaluate and to use."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

from . import engines
from .bundle import Bounds, Bundle, Progress, open_bundle
from .bundle.manifest import check_identity
from .engines import Engine
from .engines.memory import PassMemory, fit_passes, fit_text
from .errors import DataError, TuningError, warn
from .files import check_output
from .journal.file import Journal
from .journal.remembered import Remembered, chosen, remembered
from .journal.run_folder import VALUES_FILE
from .journal.snapshots import forget
from .journal.start import Start
from .journal.state import replay
from .scoring import evaluation
from .scoring.evaluation import Evaluation
from .scoring.values import Values
from .scoring.values_file import export_values, load_values
from .tasks import (
    Encoded,
    OnLong,
    Prediction,
    Rows,
    Task,
    check_spec,
    demonstrations,
    encode_questions,
    encode_rows,
    read_rows,
    read_spec,
    task_for,
    warn_of_examples,
)
from .tasks.chat_template import ChatTemplate, checked_messages
from .tasks.field_checks import check_text
from .tasks.rows import Row
from .tasks.tokenising import tokenise, watched
from .tuning.budget import Budget, Control
from .tuning.tuner import Tuned, Tuner
from .writing import Manner, TokenLogprob, Writer, Writing
from .writing.likelihood import of_given

PREDICTED_TOKENS = 64
"""Most tokens of an answer that is written as a prediction."""


class Model:
    """Made by ``open_model``. Use it as a context manager, or call ``close``."""

    def __init__(
        self,
        bundle: Bundle,
        task_spec: Mapping[str, Any] | None,
        *,
        on_long: OnLong,
        engine: str | None,
        threads: int | Literal["auto"],
        memory_limit: int | None,
    ) -> None:
        self.bundle = bundle
        self._start = Start.of(bundle)
        self.values = Values(self._start.values)
        """What evaluates, predicts and writes. As exported until ``load``, and after ``reset``."""
        self.step = 0
        """Step of the run that they are from; 0 as exported."""
        self._asked = task_spec is not None
        if task_spec is not None:
            check_spec(task_spec)
        self._spec = bundle.task if task_spec is None else dict(task_spec)
        self._on_long: OnLong = on_long
        self._opening: dict[str, Any] = {"name": engine, "threads": threads}
        self._memory, self._memory_limit = PassMemory.of_bundle(bundle), memory_limit
        self._task: Task | None = None
        self._engine: Engine | None = None

    @property
    def task(self) -> Task:
        """What is asked of the model.

        Raises:
            DataError: neither the bundle nor ``open_model`` named one, or it makes no sense.
        """
        if self._task is None:
            self._task = task_for(self.bundle, self._spec, on_long=self._on_long)
        return self._task

    @property
    def task_spec(self) -> Mapping[str, Any] | None:
        """The specification in use: ``open_model``'s, else a loaded run's, else the bundle's."""
        return self._spec

    @property
    def engine(self) -> Engine:
        """Runs the program; opened when first asked for.

        Raises:
            EngineError: none can be opened here.
        """
        if self._engine is None:
            limit = self._memory_limit
            self._engine = engines.open_engine(self.bundle, memory_limit=limit, **self._opening)
        return self._engine

    def twin(self) -> "Model":
        """Another model over the same open program, as exported: with values and, where ``load``
        takes one of a run, a task of its own. It opens nothing, and ends when this one is closed.

        Raises:
            EngineError: no engine can be opened here.
        """
        _ = self.engine  # once for both
        found = copy(self)
        found.reset()
        return found

    def encode(self, rows: Rows, *, labelled: bool = True) -> list[Encoded]:
        """Rows as the task's examples.

        Raises:
            DataError: a file or row is unusable; the message names it.
        """
        return encode_rows(self.task, rows, labelled=labelled)

    def show(self, rows: Rows, count: int | Literal["auto"] = "auto") -> list[Row]:
        """Put some labelled rows in front of every prompt, as the task's demonstrations: of a few
        draws the one behind which the untuned model errs least, on rows that are set aside for it.
        Where the task has demonstrations, as one of a run that goes on, it keeps them.

        Args:
            rows: to learn from, with labels.
            count: of demonstrations; ``auto``: ``demonstrations.USUAL``, and one in 32 of the
                rows at most. Fewer where the rows are too long for so many.

        Returns:
            the rows that are left to learn from: neither shown nor set aside.

        Raises:
            DataError: a row is unusable, or the task takes no demonstrations.
        """
        given, field = read_rows(rows), demonstrations.FIELD
        spec = dict(self._spec or {})
        if field not in self.task.optional:
            raise DataError(f"a {spec['kind']} task takes no demonstrations")
        comparing, others = demonstrations.apart(given)
        if field not in spec:
            bounds = self.bundle.bounds
            room = bounds.prefix or bounds.length // 2
            trials = []
            for shown in demonstrations.draws(self.task, others, count, room):
                trial = self.twin()
                trial._spec, trial._task = {**spec, field: [dict(row) for row in shown]}, None
                trials.append((trial.evaluate(comparing).loss if comparing else 0.0, trial._spec))
            if not trials:
                return given
            spec = min(trials, key=lambda each: each[0])[1]
            self._spec, self._task = spec, None
        return demonstrations.without(others, spec[field])

    def tuner(
        self,
        folder: str | Path,
        train: Rows | Sequence[Encoded],
        held_out: Rows | Sequence[Encoded] | None = None,
        *,
        budget: Budget | None = None,
        control: Control | None = None,
        allow_changes: bool = False,
        on_evaluation: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> Tuner:
        """Start a run in ``folder``, or resume the one that is there.

        Args:
            train: rows with labels, or encoded examples.
            held_out: the same, which decide the best step.
            settings: by name, as flags of ``seedtune tune`` have them (``lr=1e-3``): those of
                ``Settings`` and of the estimator's options. What is left out, or None, is the run's
                own or, for a new run, what suits bundle, task and data.

        Raises:
            DataError: a row is unusable.
            SeedtuneError: ``folder`` is in the bundle's own.
            TuningError, JournalError: see ``Tuner``.
        """
        check_output(Path(folder), self.bundle.path)
        examples = self._examples(train)
        evaluated = [] if held_out is None else self._examples(held_out)
        warn_of_examples(self.task, examples, evaluated)
        return Tuner(
            self.engine,
            self._start,
            self.task,
            examples,
            folder=folder,
            settings=settings,
            eval_examples=evaluated,
            budget=budget,
            control=control,
            allow_changes=allow_changes,
            memory_limit=self._memory_limit,
            on_evaluation=on_evaluation,
            task_spec={"spec": self._spec, "on_long": self._on_long},
        )

    def load(self, source: Tuned | str | Path) -> None:
        """Use tuned values from now on.

        Args:
            source: what ``Tuner.tuned`` gave, a file that ``save`` wrote, here or on the hub, or
                a run folder, whose best evaluated step is taken, and its task unless ``open_model``
                named one.

        Raises:
            BundleError, JournalError: damaged, or of another bundle.
            TuningError: a run of another task than ``open_model`` named.
        """
        if isinstance(source, Tuned):
            self.values, self.step = source.values.copy(), source.step
        elif os.path.isdir(source):
            done = replay(source, self._start)
            self._take_task(done.header.task, Path(source))
            self.values = done.best_values
            self.step = done.history.steps if done.best is None else done.best.step
        else:
            self.values, self.step = load_values(source, self.bundle, self._start.kinds), 0

    def reset(self) -> None:
        """Use the values as they were exported from now on."""
        self.values, self.step = Values(self._start.values), 0

    def _take_task(self, known: Mapping[str, Any] | None, run: Path) -> None:
        if known is None:  # whoever began it did not say
            return
        if self._asked and known["spec"] != self._spec:
            raise TuningError(
                f"{run}: was tuned for another task ({known['spec']}); leave out --task, or give "
                "the run that was tuned for this one"
            )
        if not self._asked:
            self._spec, self._task = dict(known["spec"]), None

    def save(self, file: str | Path) -> str:
        """Write the values in use as float16 safetensors; returns their SHA-256.

        Raises:
            BundleError: the file cannot be written.
            SeedtuneError: it is one of the bundle's own.
            TuningError: a value exceeds float16.
        """
        check_output(Path(file), self.bundle.path)
        return export_values(file, self.values, self.bundle, step=self.step)

    def remembered(self, run: str | Path) -> list[Remembered]:
        """The texts that a run keeps words of, the newest first; none where it keeps no words.

        Raises:
            JournalError: damaged, or of another bundle.
        """
        return remembered(replay(run, self._start), self.bundle.tokenizer().decode)

    def forget(
        self, run: str | Path, texts: Sequence[str] = (), since: float | None = None
    ) -> Journal:
        """Take words of its texts out of a run for good (see ``journal.snapshots.forget``); what
        else it learned stays, also as its values file, if it had one. Values in use are left as
        they are until the next ``load``.

        Args:
            texts: those with one of these in them are forgotten (see ``remembered``).
            since: those that were learned at this time (seconds since 1970) or later. All go where
                neither is given.

        Returns:
            the run's journal from now on.

        Raises:
            JournalError, BundleError: as ``journal.snapshots.forget``; the values file cannot be
                written.
        """
        file = Path(run) / VALUES_FILE
        had_values = file.exists()
        decode = self.bundle.tokenizer().decode
        some = bool(texts) or since is not None
        which = partial(chosen, decode=decode, texts=texts, since=since) if some else None
        journal = forget(run, self._start, which)
        if had_values:
            done = replay(journal, self._start)
            export_values(file, done.values, self.bundle, step=done.history.steps)
        return journal

    def evaluate(
        self,
        rows: Rows | Sequence[Encoded],
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """Loss and metric of the values in use on labelled rows.

        Raises:
            DataError: no rows, or one is unusable.
            TuningError: there is no memory for one of them.
        """
        encoded = self._examples(rows)
        return evaluation.evaluate(
            self.engine,
            self.task,
            encoded,
            self.values,
            self._passes(encoded),
            progress,
        )

    def _passes(self, examples: Sequence[Encoded]) -> Bounds:
        """The program's bounds, cut to the memory that is left."""
        bounds = self.bundle.bounds
        if not examples:  # refused where they are used
            return bounds
        prefix, now = len(self.task.prefix), self.engine.memory()
        limit = self._memory_limit
        return fit_passes(bounds, self._memory, examples, prefix=prefix, limit=limit, now=now)

    @overload
    def predict(self, rows: Mapping[str, Any]) -> Prediction: ...
    @overload
    def predict(
        self,
        rows: Rows | Sequence[Encoded],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Prediction]: ...
    def predict(
        self,
        rows: Mapping[str, Any] | Rows | Sequence[Encoded],
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction | list[Prediction]:
        """The answer to one row, or the answers to many, in their order.

        Where a task's answer is text, it is written for rows that bring none along: greedily, up
        to its end (the line's, for a task that learns no end) or ``PREDICTED_TOKENS``. Text of a
        row is only scored.

        Args:
            progress: hears how many answers there are, and of how many.

        Raises:
            DataError: no rows, or one is unusable.
        """
        one = isinstance(rows, Mapping)
        given: Any = [rows] if one else rows
        asked: list[Any] = _encoded(given) or encode_questions(self.task, given)
        if not asked:
            raise DataError("no examples to predict")
        answers: dict[int, Prediction] = {}

        def done(count: int, _: int = 0) -> None:
            if progress is not None:
                progress(count, len(asked))

        scored = [n for n, each in enumerate(asked) if isinstance(each, Encoded)]
        if scored:
            examples = [asked[n] for n in scored]
            passes = self._passes(examples)
            found = evaluation.predict(self.engine, self.task, examples, self.values, passes, done)
            answers.update(zip(scored, found, strict=True))
        if len(scored) < len(asked):
            writer = self.writer()
            manner = Manner(PREDICTED_TOKENS, stop=() if self.task.ends else ("\n",))
            for number, prompt in enumerate(asked):
                if number not in answers:
                    text = "".join(writer.write(prompt, manner))
                    answers[number] = Prediction(text, {})
                    done(len(answers))
        return answers[0] if one else [answers[n] for n in range(len(asked))]

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        repetition_penalty: float | None = None,
    ) -> Writing:
        """Go on from ``prompt`` with the values in use; iterate over the result for its pieces.

        Args:
            prompt: a text, or messages (``role``, ``content``), which the model's chat template
                writes and the answer follows. Control tokens in a text are such, as in
                transformers; in messages they are plain text (see ``tasks.chat_template``).
            max_tokens, temperature, top_p, seed, stop, repetition_penalty: see ``Manner``.

        Raises:
            DataError: an argument makes no sense, or the prompt leaves no room for an answer.
            EngineError: the bundle or the engine cannot write.
        """
        manner = Manner(max_tokens, temperature, top_p, seed, _listed(stop), repetition_penalty)
        return self.writer().write(self.prompt_tokens(prompt), manner)

    def writer(self) -> Writer:
        """Writes one answer after another with the values now in use, as in a conversation.

        Raises:
            EngineError: the bundle or the engine cannot write.
            TuningError: there is no memory for a text.
        """
        part = self.values.part
        if part is not None and not part.writes:
            warn(
                "the values in use hold weights that choose between given answers; these have no "
                "part in writing, so the text is written without them"
            )
        text = self.engine.text(self.values.sensitive, **self.values.inputs)
        bound = text.bound
        generation = self.bundle.generation
        if generation is not None:
            bound = fit_text(generation, self._memory, limit=self._memory_limit)
        return Writer(text, self.bundle.tokenizer(), self.bundle.end_ids, bound, part)

    def logprobs(
        self, tokens: Sequence[int], nominated: Sequence[Sequence[int]] = ()
    ) -> list[TokenLogprob]:
        """How likely each token of a text but the first is, with the values in use.

        Args:
            nominated: as many tokens for each of these places, told as its ``top`` (see
                ``Writer.likeliest``).

        Raises:
            DataError: the text is longer than a row of the program, or ``nominated`` are too many.
        """
        part = self.values.part
        values = Values(self.values.sensitive, None if part is None or not part.writes else part)
        return of_given(self.engine, values, self.bundle.bounds, tokens, nominated)

    def prompt_tokens(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """A prompt as ``generate`` takes it, in tokens.

        Raises:
            DataError: half a character, no message, an unknown role, or no chat template.
        """
        if isinstance(prompt, str):
            tokenizer = self.bundle.tokenizer()
            check_text(prompt, "the prompt")
            return list(watched(lambda _: tokenise(tokenizer, prompt), "the prompt").ids)
        messages = checked_messages(prompt, "the prompt")
        if self.bundle.chat is None:
            raise DataError(
                f"{self.bundle.path}: has no chat template, as its model had none: give the prompt "
                "as one text"
            )
        return watched(lambda _: self._chat.answering(messages, "the prompt"), "the prompt")

    @cached_property
    def _chat(self) -> ChatTemplate:
        part = self.bundle.chat
        assert part is not None
        return ChatTemplate(part.template, part.special_tokens, self.bundle.tokenizer())

    def close(self) -> None:
        """Free the program. Safe to repeat."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _examples(self, rows: Any) -> list[Encoded]:
        return _encoded(rows) or self.encode(rows)


def _encoded(rows: Any) -> list[Encoded]:
    """Examples that a caller encoded before; empty where they are rows of data."""
    if isinstance(rows, list | tuple) and all(isinstance(row, Encoded) for row in rows):
        return list(rows)
    return []


def _listed(stop: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        raise DataError("stop must be a list of texts; put the one into a list")
    return tuple(stop)


def open_model(
    bundle: str | Path | Bundle,
    *,
    task: Mapping[str, Any] | str | Path | None = None,
    on_long: OnLong = "error",
    engine: str | None = None,
    threads: int | Literal["auto"] = "auto",
    memory_limit: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Open a bundle and check all of it; its program is opened when first needed.

    Args:
        bundle: folder or ``.seedtune`` file, here or on the hub (see ``open_bundle``).
        task: a task specification (see ``runtime.tasks``) or a JSON file with one, here or on the
            hub; by default the bundle's.
        on_long: see ``tasks.task_from_spec``.
        engine: name in ``engines.ENGINES``; by default the first that works here.
        threads: CPU threads; ``auto`` takes the count that is fastest here.
        memory_limit: bytes that this process may hold; by default what the system has left.
        sha256: the bundle's own (see ``open_bundle``); another is refused before anything of it
            is read but its manifest.
        progress: hears how far the check is (see ``open_bundle``).

    Raises:
        BundleError: another than ``sha256`` names, truncated, altered, or newer than this version.
        DataError: the task is no specification (see ``tasks.check_spec``).
        DownloadError: the hub does not deliver one of them.
    """
    if isinstance(task, str | Path):
        task = read_spec(task)
    if isinstance(bundle, Bundle):
        opened = bundle
        check_identity(opened.sha256, sha256, opened.path)
    else:
        opened = open_bundle(bundle, sha256=sha256, progress=progress)
    return Model(
        opened,
        task,
        on_long=on_long,
        engine=engine,
        threads=threads,
        memory_limit=memory_limit,
    )
