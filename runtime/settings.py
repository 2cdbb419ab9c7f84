"""The settings of a tuning run: everything but the data that its result depends on."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .errors import TuningError
from .options import check_options, option


@dataclass(frozen=True)
class Options:
    """What one estimator lets a run choose; each has a subclass in its own file.

    Its fields are made by ``option``; their names are those of no setting that every run has.

    Raises:
        TuningError: a value makes no sense; the message names the field.
    """

    def __post_init__(self) -> None:
        check_options(self)

    def learning_rate(self, step: int, steps: int) -> float:
        """What step ``step`` (0-based) of ``steps`` is multiplied by, the same bits on every
        platform; 1 where the estimator solves for its step."""
        return 1.0

    @property
    def perturbation(self) -> float:
        """Size of a perturbation; 0 where there is none."""
        return 0.0

    @property
    def forwards(self) -> int:
        """Forwards of a step."""
        return 1

    memory: ClassVar[str] = ""
    """Name of the option to keep words of the texts beside what is learned from them. A run that
    keeps them stops by forgetting, one that forgot begins again by being told."""

    @property
    def keeps_words(self) -> bool:
        """Whether words of the texts are kept."""
        return bool(self.memory and getattr(self, self.memory))

    def forgetting(self) -> Self:
        """The same of a run that keeps no words."""
        return dataclasses.replace(self, **{self.memory: False}) if self.memory else self


@dataclass(frozen=True)
class Settings:
    """Settings of one run, as ``estimators.complete`` makes them; the journal's header stores them.

    Raises:
        TuningError: a value makes no sense; the message names the field.
    """

    options: Options
    """The estimator's own."""
    estimator: str = option("", "How a step is made of looks at a batch.", fixed=True)
    seed: int = option(0, "Of noise and data order.", least=0, most=2**64 - 1)
    steps: int | None = option(None, "Steps of the whole run.", least=1, most=2**47 - 1)
    batch_size: int = option(16, "Examples a step.", least=1)
    eval_every: int | None = option(
        None, "Steps between held-out evaluations; 0: at the start and the end only.", least=0
    )
    loss_jump: float = option(
        2.0,
        "Skip a batch whose loss exceeds the last evaluation's by this many starting losses.",
        above=0,
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def resolved_steps(self) -> int:
        """``steps``, once it has been chosen."""
        if self.steps is None:
            raise TuningError("setting steps is still open; complete the settings first")
        return self.steps

    def learning_rate(self, step: int) -> float:
        """Learning rate of step ``step`` (0-based), the same bits on every platform."""
        return self.options.learning_rate(step, self.resolved_steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values by name, the estimator's own among them."""
        found = dataclasses.asdict(self)
        own = found.pop("options")
        return {**found, **own}
