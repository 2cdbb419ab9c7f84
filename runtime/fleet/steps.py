"""A run that many devices share: the server names seeds, devices answer how their losses slope.

The run is a journal like any other. A question holds all of it so far, a few bytes a step, so that
whoever joins replays the values from the start, and all hold the same to the bit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..estimators import make_estimator, settings_of, spec_of
from ..estimators.estimator import Averaging
from ..journal.format import FORGOTTEN, Header, Skip, Step
from ..journal.start import Start
from ..journal.state import LiveRun
from ..model import Model
from .messages import Answer, Question, unpacked
from .release import Release


class SharedSteps:
    """The run. Close it, or use it as a context manager.

    Args:
        folder: of the run on the server.
        clip, noise: see ``Release``.
        settings: by name, as ``seedtune tune`` has them, of an estimator whose numbers are means
            over examples; ``batch_size`` is each device's. Nothing is measured for ``auto``.

    Raises:
        TuningError: settings that make no sense here.
        JournalError: there is a run in the folder.
    """

    def __init__(
        self,
        model: Model,
        folder: str | Path,
        *,
        clip: float | None = None,
        noise: float = 0.0,
        **settings: Any,
    ) -> None:
        self.release = Release(clip, noise)
        chosen = settings_of(settings)
        spec = spec_of(chosen.estimator)
        estimator = make_estimator(chosen) if spec.shape is None and spec.part is None else None
        if not isinstance(estimator, Averaging):
            raise TuningError(f"the steps of {chosen.estimator} cannot be shared by devices")
        _ = chosen.learning_rate(0), chosen.options.perturbation  # neither may be open
        start = Start.of(model.bundle)
        values = start.tuned_from(None)
        header = Header(
            bundle_sha256=start.bundle_sha256,
            values_sha256=values.sha256,
            entries=values.entries,
            scalar_count=estimator.scalar_count,
            settings=chosen.to_dict(),
            train_sha256=FORGOTTEN,  # nobody has all rows
            eval_sha256=None,
            metric={
                "name": str(model.task.metric_name),
                "higher_is_better": bool(model.task.higher_is_better),
            },
            task={"spec": model.task_spec, "on_long": "truncate"},
            extra={"fleet": True},
        )
        self._run = LiveRun.begin(Path(folder), header, start)
        self._count, self._size = estimator.scalar_count, chosen.batch_size
        self._answers: dict[int, NDArray[np.float64]] = {}

    @property
    def done(self) -> bool:
        return self._run.state.history.steps >= self._run.state.history.settings.resolved_steps

    @property
    def sha256(self) -> str:
        """Of the values after the last step."""
        return self._run.state.values.sha256

    def question(self, device: int) -> Question:
        journal = self._run.writer.path.read_bytes()
        return {"kind": "steps", "journal": journal, **self.release.question}

    def admit(self, device: int, answer: Answer) -> None:
        slopes = unpacked(answer, "slopes", "f8", self._count)
        self.release.check(slopes)
        if answer.get("sha256") != self.sha256:
            raise ValueError("slopes of other values")
        self._answers[device] = slopes

    def advance(self, present: Sequence[int]) -> None:
        mean = np.mean([self._answers[each] for each in present], axis=0)
        self.release.count(len(present))
        with np.errstate(over="ignore"):
            scalars = mean.astype(np.float16)
        exact = tuple(float(scalar) for scalar in scalars)
        self._run.commit(Step(exact) if np.isfinite(scalars).all() else Skip(1))
        if self.done:
            self._run.end(f"all {self._run.state.history.steps} steps done")

    def close(self) -> None:
        """Release the run's folder. Safe to repeat."""
        self._run.close()

    def __enter__(self) -> "SharedSteps":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
