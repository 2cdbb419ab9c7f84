"""The settings of a tuning run: everything but the data that its result depends on.

They are checked fields of frozen dataclasses, each with a default and a line of help. What a field
says of itself is said once: its checks, a command line's flag and its help, a table of them and a
journal's header all come from here.
"""

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from .errors import TuningError


@dataclass(frozen=True)
class Option:
    """What a field takes."""

    name: str
    kind: type
    """``int``, ``float``, ``bool`` or ``str``."""
    words: tuple[str, ...]
    """All that a ``str`` may be, none for any; what may stand in place of a number."""
    optional: bool
    """Whether None leaves it open."""
    default: Any
    help: str
    least: float | None
    most: float | None
    above: float | None
    fixed: bool
    """Whether a run keeps it from its first step to its last."""

    @property
    def wanted(self) -> str:
        """What a value must be, in words."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return " or ".join(self.words) or "a name"
        found = "a whole number" if self.kind is int else "a number"
        if self.above is not None:
            found += f" above {self.above:g}"
        elif self.least is not None and self.most is not None:
            found += f", {self.least:g} to {self.most:g}"
        elif self.least is not None:
            found += f" of at least {self.least:g}"
        return found + "".join(f", or {word!r}" for word in self.words)

    def check(self, value: Any) -> None:
        """See that ``value`` is one that the field takes.

        Raises:
            TuningError: it is not; the message names the field and says what it takes.
        """
        if not (value is None and self.optional) and not self._takes(value):
            raise TuningError(f"setting {self.name}={value!r} must be {self.wanted}")

    def _takes(self, value: Any) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if isinstance(value, str):
            return value in self.words or (self.kind is str and not self.words)
        number = int if self.kind is int else (int, float)
        if self.kind is str or isinstance(value, bool) or not isinstance(value, number):
            return False
        try:
            if not math.isfinite(value):
                return False
        except OverflowError:  # a whole number beyond float64
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
        )

    def parse(self, text: str) -> Any:
        """The value that a command line's text stands for, checked.

        Raises:
            TuningError: as ``check``.
        """
        value: Any = text
        if self.kind in (int, float) and text not in self.words:
            with contextlib.suppress(ValueError):  # refused below as the text that it is
                value = self.kind(text)
        self.check(value)
        return value


def option(
    default: Any,
    help_text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    fixed: bool = False,
) -> Any:
    """A field of a dataclass whose type says the rest: ``int``, ``float``, ``bool``, ``str`` or a
    ``Literal`` of words, or several of them.

    Args:
        help_text: a sentence for whoever chooses it.
        least, most, above: bounds of a number.
        fixed: a run keeps it from its first step to its last.
    """
    known = {"help": help_text, "least": least, "most": most, "above": above, "fixed": fixed}
    return field(default=default, metadata=known)


def options_of(kind: type) -> dict[str, Option]:
    """The fields of a dataclass that ``option`` made, by name."""
    hints = get_type_hints(kind)
    return {
        one.name: Option(one.name, *_taken(hints[one.name]), one.default, **one.metadata)
        for one in fields(kind)
        if one.metadata
    }


def check_options(instance: Any) -> None:
    """See that every field that ``option`` made holds what it takes.

    Raises:
        TuningError: one does not.
    """
    for name, known in options_of(type(instance)).items():
        known.check(getattr(instance, name))


def _taken(hint: Any) -> tuple[type, tuple[str, ...], bool]:
    """What a field's type takes: the kind of its values, words, and whether None is one."""
    kind, words, optional = str, (), False
    for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if part is NoneType:
            optional = True
        elif get_origin(part) is Literal:
            words += get_args(part)
        else:
            kind = part
    return kind, words, optional


@dataclass(frozen=True)
class Options:
    """What one estimator lets a run choose; each has a subclass in its own file, which may have
    other defaults.

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


Schedule = Literal["constant", "linear"]

RATE = "Learning rate"
SIZE = "Size of the perturbation"


@dataclass(frozen=True)
class Scheduled(Options):
    """Of an estimator whose steps have a learning rate."""

    lr: float
    """Of the first step; each estimator has a default of its own."""
    schedule: Schedule = option(
        "constant", "Whether the learning rate stays, or falls linearly to 0 over the run."
    )

    def learning_rate(self, step: int, steps: int) -> float:
        if self.schedule == "linear":
            return self.lr * max(0.0, 1.0 - step / steps)
        return self.lr


@dataclass(frozen=True)
class Perturbing(Scheduled):
    """Of an estimator that compares losses of values with noise added."""

    eps: float | Literal["auto"] = option(
        "auto", f"{SIZE}; 'auto' measures the loss noise of the program.", above=0
    )

    @property
    def perturbation(self) -> float:
        if self.eps == "auto":
            raise TuningError("setting eps is 'auto': it is measured when a run starts")
        return self.eps
