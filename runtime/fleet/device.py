"""A device's part: what it answers, and what it refuses to."""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..estimators.estimator import Averaging
from ..estimators.pooled_fit import losses_and_gradients, summarise
from ..estimators.private_fit import mean_gradient
from ..estimators.ridge_logistic import Examples, choose, cross_entropy, fit, scores
from ..journal.format import MAGIC
from ..journal.history import standard_error
from ..journal.run_folder import JOURNAL_FILE
from ..journal.start import Start
from ..journal.state import replay
from ..model import Model
from ..scoring.answer_head import AnswerHead, AnswerHeads, describe, observe
from ..scoring.batch_loss import Look
from ..scoring.values import Values
from ..tasks import Encoded, Rows
from ..tuning.batches import batch_indices
from .messages import Answer, Question, identity, packed, unpacked
from .release import noise_of, released
from .rounds import LEAST_DEVICES, LEAST_NOISE, LEAST_ROWS


@dataclass(frozen=True)
class Verdict:
    """Which head a device keeps, by its own held-out rows."""

    ships: str
    """``start``, ``fleet``, ``own`` (on top of the fleet's) or ``alone``."""
    accuracy: dict[str, float]
    """Of each, by the same names."""
    values: Values
    """What ships."""


class Device:
    """Answers questions from its rows. Hidden states are computed once, at the first question that
    needs them.

    Args:
        held_out: rows that only judge.
        least_rows: with fewer rows it answers nothing.
        least_devices: nor if fewer devices than so many are asked.
        least_noise: nor without noise of so many clips, but for sums of judgements. 0 lets it send
            exact numbers, from which its texts can be guessed.
        states: what ``states`` of an earlier one gave, of the same rows.
    """

    def __init__(
        self,
        model: Model,
        train: Rows | Sequence[Encoded],
        held_out: Rows | Sequence[Encoded] | None = None,
        *,
        least_rows: int = LEAST_ROWS,
        least_devices: int = LEAST_DEVICES,
        least_noise: float = LEAST_NOISE,
        states: bytes | None = None,
    ) -> None:
        self._model = model
        self._rows: dict[str, Any] = {"train": train, "held_out": held_out}
        self._least_rows, self._least_devices = least_rows, least_devices
        self._least_noise = least_noise
        self._seen: dict[str, Examples] = {} if states is None else unpack_examples(states)
        self.verdict: Verdict | None = None
        """Of the last question to judge a head."""

    @property
    def states(self) -> bytes:
        """Hidden states of the rows, which never leave the device; empty if none were needed."""
        return pack_examples(self._seen) if self._seen else b""

    def answer(self, question: Question) -> Answer:
        """What the server may know.

        Raises:
            TuningError: of another bundle or task, too few rows, too few devices are asked, or with
                too little noise.
            DataError: a row is unusable.
            ValueError: no question of this version.
        """
        if question["fleet"] != identity(self._model):
            raise TuningError(
                "the fleet learns with another bundle or task than this device has; give it the "
                "same ones"
            )
        if question["devices"] < self._least_devices:
            raise TuningError(
                f"{question['devices']} devices are asked, this one answers among at least "
                f"{self._least_devices}"
            )
        kinds = {
            "pooled": self._pooled,
            "private": self._private,
            "steps": self._steps,
            "judge": self._judge,
        }
        if question.get("kind") not in kinds:
            raise ValueError(f"a question of kind {question.get('kind')!r:.40}")
        noise = noise_of(question) if question["kind"] in ("private", "steps") else 0.0
        if question["kind"] != "judge" and not noise >= self._least_noise:
            raise TuningError(
                f"the question asks for noise of {noise:g} clips, this device answers with "
                f"{self._least_noise:g} or more (least-noise; with 0 it sends exact numbers, from "
                "which its texts can be guessed)"
            )
        found = kinds[question["kind"]](question)
        if found["rows"] < self._least_rows:
            raise TuningError(
                f"this device has {found['rows']} rows, it answers with {self._least_rows} or more"
            )
        return {"fleet": question["fleet"], "round": question["round"], **found}

    def _pooled(self, question: Question) -> Answer:
        seen = self._examples("train").of_share(question["share"])
        count, shape = len(question["points"]), (self._head_rows, seen.features.shape[2])
        points = unpacked(question, "points", "f4", count // 4 // (shape[0] * shape[1]), *shape)
        summary = summarise(seen)
        losses, gradients = losses_and_gradients(seen, summary.mean, points)
        found: Answer = {
            "rows": len(seen.gold),
            "losses": packed(losses),
            "gradients": packed(gradients),
        }
        if not question["summary"]:
            return found
        levels = (summary.directions + 8).astype(np.uint8)
        levels = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)), constant_values=8)
        return {
            **found,
            "mean": packed(summary.mean),
            "deviation": packed(summary.deviation),
            "directions": packed(levels[:, 0::2] << 4 | levels[:, 1::2]),
            "lengths": packed(summary.lengths),
        }

    def _private(self, question: Question) -> Answer:
        seen = self._examples("train").of_share(question["share"])
        width = seen.features.shape[2] - 1
        mean, scale = (unpacked(question, name, "f4", width) for name in ("mean", "scale"))
        weights = unpacked(question, "weights", "f4", self._head_rows, width + 1)
        gradient = released(mean_gradient(seen, mean, scale, weights), question)
        return {"rows": len(seen.gold), "gradient": packed(gradient.astype(np.float32))}

    def _steps(self, question: Question) -> Answer:
        model = self._model
        examples = self._encoded("train")
        if not question["journal"].startswith(MAGIC):
            raise ValueError("a question without a journal")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / JOURNAL_FILE).write_bytes(question["journal"])
            done = replay(folder, Start.of(model.bundle))
        estimator, settings, at = done.estimator, done.history.settings, done.history.next_step
        if not isinstance(estimator, Averaging):
            raise ValueError(f"steps of {settings.estimator}")
        if len(examples) < settings.batch_size:
            raise TuningError(
                f"a step takes {settings.batch_size} rows of each device, this one has "
                f"{len(examples)}"
            )
        chosen = batch_indices(
            at.step,
            seed=settings.seed,
            lengths=np.array([each.length for each in examples]),
            batch_size=settings.batch_size,
            labels=np.array([each.gold for each in examples]),
        )
        batch = [examples[number] for number in chosen]
        look = Look(model.engine, model.task, model.bundle.bounds, batch)
        losses = estimator.measure(look, done.values, at).losses
        slopes = released(estimator.slopes(losses, eps=at.eps), question)
        return {"rows": len(examples), "sha256": done.sha256, "slopes": packed(slopes)}

    def _judge(self, question: Question) -> Answer:
        """Judges the fleet's head and fits of its own rows, on top of it and alone; keeps the
        verdict."""
        seen, train = self._examples("held_out"), self._examples("train")
        count = self._head_rows * seen.features.shape[2] + 1
        fleet = self._head(unpacked(question, "own", "f4", count))
        start = self._head(np.zeros(count, np.float32))
        heads = {"start": start, "fleet": fleet}
        if len(train.gold):
            heads |= {"own": self._on_top(fleet, train), "alone": self._on_top(start, train)}
        told = {name: _judged(seen, head) for name, head in heads.items()}
        # As runs choose their best step: all within its standard error are as good as the best, and
        # the loss tells them apart.
        accuracy = {name: right / max(1, len(seen.gold)) for name, (right, _) in told.items()}
        best = max(accuracy.values())
        good = [n for n in heads if accuracy[n] >= best - standard_error(best, len(seen.gold))]
        ships = min(good, key=lambda name: told[name][1])
        values = Values(self._model.bundle.values.astype(np.float32), heads[ships])
        self.verdict = Verdict(ships, accuracy, values)
        return {
            "rows": len(seen.gold),
            "judged": packed(np.array([*told["start"], *told["fleet"]])),
        }

    def _on_top(self, fleet: AnswerHead, train: Examples) -> AnswerHead:
        """A fit of this device's rows to what ``fleet`` leaves open; ``fleet`` if it does not
        help."""
        offset = scores(train.of_share(fleet.share), fleet.weights)
        left, zeros = replace(train, offset=offset), np.zeros_like(fleet.weights)
        more = fit(left, choose(left, zeros, ()).ridge, zeros)
        return self._head(fleet.own + np.append(more.reshape(-1), np.float32(0)))

    @property
    def _head_rows(self) -> int:
        return self._model.task.head_rows

    def _head(self, own: NDArray[np.float32]) -> AnswerHead:
        width = len(own) // self._head_rows - 1
        return AnswerHeads().restore(describe(self._model.task.head_labels, width), own)

    def _encoded(self, name: str) -> list[Encoded]:
        rows = self._rows[name]
        if rows is None:
            raise TuningError(f"this device has no {name.replace('_', '-')} rows")
        if not (isinstance(rows, list) and all(isinstance(row, Encoded) for row in rows)):
            self._rows[name] = rows = self._model.encode(rows)
        return list(rows)

    def _examples(self, name: str) -> Examples:
        if name not in self._seen:
            self._seen[name] = examples_of(self._model, self._encoded(name))
        return self._seen[name]


def examples_of(model: Model, encoded: Sequence[Encoded]) -> Examples:
    """What an answer head learns from, of the model as exported: one forward of each row."""
    bundle, task, engine = model.bundle, model.task, model.engine
    zeros = AnswerHeads().restore(describe(task.head_labels, engine.hidden_width))
    values = Values(bundle.values.astype(np.float32), zeros)
    _, seen = observe(Look(engine, task, bundle.bounds, encoded), values)
    offset = seen.scores - seen.scores.max(axis=1, keepdims=True)
    return Examples(offset.astype(np.float32), seen.features, seen.gold)


def _judged(seen: Examples, head: AnswerHead) -> tuple[float, float]:
    """Right answers and summed loss."""
    scored = scores(seen.of_share(head.share), head.weights)
    right = float((scored.argmax(axis=1) == seen.gold).sum())
    return right, float(cross_entropy(scored, seen.gold).sum())


def pack_examples(seen: dict[str, Examples]) -> bytes:
    """Examples by name, to keep."""
    room = io.BytesIO()
    arrays: dict[str, Any] = {
        f"{name}.{part}": getattr(examples, part)
        for name, examples in seen.items()
        for part in ("offset", "features", "gold")
    }
    np.savez(room, **arrays)
    return room.getvalue()


def unpack_examples(data: bytes) -> dict[str, Examples]:
    """Inverse of ``pack_examples``."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = {name.split(".")[0] for name in arrays}
        return {
            name: Examples(*(arrays[f"{name}.{part}"] for part in ("offset", "features", "gold")))
            for name in names
        }
