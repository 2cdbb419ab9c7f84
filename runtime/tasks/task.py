"""What every task shares: examples, batches, and the interface of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..bundle import Bounds
from ..errors import DataError, warn
from .chat_template import ChatTemplate
from .field_checks import Check, Template
from .tokenising import Front, shorten

OnLong = Literal["error", "truncate"]


@dataclass(frozen=True)
class Setting:
    """What a task is built on, and how it is to treat what may be treated in two ways."""

    tokenizer: Tokenizer
    bounds: Bounds
    """Bounds of the program that will score its examples."""
    pad_id: int
    on_long: OnLong
    chat: ChatTemplate | None = None
    """The model's, for kinds whose rows are conversations."""
    ends: tuple[int, ...] = ()
    """Tokens with which the model ends a text; the first one stands behind texts to learn."""


@dataclass(frozen=True)
class Encoded:
    """One example as tokens, but for those that its task's every row has in front."""

    tokens: NDArray[np.int64]
    """int64 ``[rows, length]``, padded on the right; several rows for multiple choice."""
    positions: NDArray[np.int64]
    """int64 ``[n, 2]``, row and column of every hidden state to score."""
    candidates: NDArray[np.int64]
    """int64 ``[n, C]``, token ids scored there."""
    gold: int
    """Index of the right label or choice; 0 for completion, -1 if the example has no label."""

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return int(self.tokens.shape[1])

    @property
    def rows(self) -> int:
        """Rows of the program's input that the example takes."""
        return len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right into one program input."""

    tokens: NDArray[np.int64]
    """int64 ``[B, T]``, ``T`` the longest row, at least 2."""
    positions: NDArray[np.int64]
    """int64 ``[N]``, flat indices ``b * T + t``, in order of the rows."""
    candidates: NDArray[np.int64]
    """int64 ``[N, C]``."""
    gold: NDArray[np.int64]
    """int64 ``[examples]``."""
    prefix: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 ``[L]``, tokens that stand in front of every row; ``[0]`` where none do."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.gold)

    @property
    def whole(self) -> "Batch":
        """The same examples in rows that hold the prefix, too."""
        ahead, (rows, length) = len(self.prefix), self.tokens.shape
        front = np.broadcast_to(self.prefix, (rows, ahead))
        return Batch(
            tokens=np.concatenate([front, self.tokens], axis=1),
            positions=self.positions + ahead * (1 + self.positions // length),
            candidates=self.candidates,
            gold=self.gold,
        )

    @property
    def row_of(self) -> NDArray[np.int64]:
        """int64 ``[N]``, the row of each position."""
        return np.asarray(self.positions // self.tokens.shape[1])


@dataclass(frozen=True)
class Prediction:
    """What the model answers to one example."""

    answer: str | None
    """A label, the index of a choice, or the text that was written; None for a text that the row
    brought along and that was only scored."""
    scores: dict[str, float]
    """Probability of each label or choice; for a text of the row ``nll`` (a token's mean) and
    ``tokens``."""


@dataclass(frozen=True)
class Observation:
    """What an answer head with weights ``[R, D + 1]`` learns from: the scores of an example's A
    answers are ``scores + (features @ weights.T).reshape(A)``, where A is F times R."""

    scores: NDArray[np.float64]
    """float64 ``[examples, A]``, without the answer head."""
    features: NDArray[np.float32]
    """float32 ``[examples, F, D + 1]``, the last of each 1."""
    gold: NDArray[np.int64]
    """int64 ``[examples]``."""


class TooLong(DataError):
    """A row has more tokens than the program takes, and is not to be cut."""

    def __init__(self, what: str, tokens: int, bound: int) -> None:
        self.tokens, self.bound = tokens, bound
        """Tokens of its longest text, and the most that a row may have."""
        super().__init__(
            f"{what}: {tokens} tokens exceed the program's bound of {bound}; cut the ends off with "
            f'--on-long truncate (on_long="truncate"), shorten it, or export with --length {tokens}'
        )


class Task(ABC):
    """Turns rows of data into examples, and log-probabilities into losses and answers.

    Args:
        spec: a specification that ``check_spec`` has seen.
    """

    fields: ClassVar[Mapping[str, Check]]
    """Fields of a specification beside ``kind``, each with what it may hold; all are needed."""
    optional: ClassVar[Mapping[str, Check]] = {}
    """Those that may be left out."""
    of_conversations: ClassVar[bool] = False
    """Whether its rows hold messages, so that it needs the model's chat template."""
    metric_name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    labels: tuple[str, ...] = ()
    """What an example's ``gold`` counts; empty where there is nothing to choose."""
    answers: int = 0
    """Answers A that it chooses between; 0 where there is nothing to choose, or another loss."""
    head_rows: int = 0
    """Rows R of an answer head, a linear map of hidden states whose scores are added to the
    answers'; 0 if the task takes none."""

    writes: bool = False
    """Whether it scores one token at each position, and its loss is their negative
    log-likelihood."""
    prefix: NDArray[np.int64] = np.empty(0, np.int64)
    """int64 ``[L]``, tokens in front of every row, which no example holds."""
    ends: bool = False
    """Whether texts to learn have the model's own end behind them, so that it learns to stop."""

    def __init__(self, spec: Mapping[str, Any], setting: Setting) -> None:
        self.template = Template(spec.get("template", ""))
        self._tokenizer = setting.tokenizer
        self._bounds = setting.bounds
        self._pad_id = setting.pad_id
        self._truncate = setting.on_long == "truncate"
        self._begin_with("")
        if self.template.source[-1:] in (" ", "\t"):
            warn(
                f"task: the template ends in a blank, {self.template.source[-20:]!r}; end it "
                "without one: to the model a word's own token begins with its space"
            )

    def _begin_with(self, text: str) -> None:
        """Say what every row's text begins with: what of it the program takes is the prefix."""
        self._front = Front(text, self._tokenizer, self._bounds.prefix)
        self.prefix = self._front.tokens

    @abstractmethod
    def encode(self, row: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
        """Encode one row of data; ``where`` (``file:row``) names it in errors.

        Args:
            labelled: False leaves the label out, for prediction.

        Raises:
            DataError: a field is missing, the label unknown, or the text exceeds the bounds.
        """

    @abstractmethod
    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Losses float64 ``[P, examples]`` from log-probabilities float32 ``[P, N, C]``."""

    @abstractmethod
    def slopes(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Gradient of the sum of one probe's losses by its log-probabilities, float64 ``[N, C]``
        from float32 ``[N, C]``."""

    @abstractmethod
    def metric(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """What each example adds to the metric, from one probe's ``[N, C]``.

        Returns:
            float64 ``[examples, 2]``: right answers and 1, or summed negative log-likelihood and
            tokens. ``aggregate`` takes the sum over examples.
        """

    def chosen(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.int64]:
        """Index of the answer that each example gets, of a task with ``labels``, from one probe's
        ``[N, C]``; int64 ``[examples]``, -1 where a score is not a number."""
        raise NotImplementedError

    @abstractmethod
    def predict(self, logp: NDArray[np.float32], batch: Batch) -> list[Prediction]:
        """One answer an example from one probe's ``[N, C]``."""

    def prompt(self, row: Mapping[str, Any], where: str) -> list[int] | None:
        """The tokens that are to be gone on from, for a row whose answer is to be written; None
        where there is nothing to write.

        Raises:
            DataError: as ``encode``.
        """
        return None

    def observe(
        self, logp: NDArray[np.float32], inputs: NDArray[np.float32], batch: Batch
    ) -> Observation:
        """What an answer head learns from, where ``head_rows`` is not 0.

        Args:
            logp: float32 ``[N, C]``, without the answer head's part.
            inputs: float32 ``[N, D + 1]``, what the answer head sees at each position.
        """
        raise NotImplementedError

    @property
    def head_labels(self) -> tuple[str, ...]:
        """Labels of an answer head's rows; none where one row serves all answers."""
        return self.labels if self.head_rows == len(self.labels) else ()

    @staticmethod
    def aggregate(totals: NDArray[np.float64]) -> float:
        """The metric from the sum ``[2]`` of ``metric`` over examples."""
        return float(totals[0] / totals[1])

    def shortest_row(self) -> dict[str, Any]:
        """A row of texts of one letter with any answer: whether it fits says whether any can."""
        return dict.fromkeys(self.template.names, "a")

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Pad examples on the right to the longest row and flatten their positions."""
        length = max(2, *(example.length for example in examples))
        height = sum(example.rows for example in examples)
        tokens = np.full((height, length), self._pad_id, dtype=np.int64)
        positions = []
        first = 0
        for example in examples:
            tokens[first : first + example.rows, : example.length] = example.tokens
            rows, columns = example.positions.T
            positions.append((first + rows) * length + columns)
            first += example.rows
        return Batch(
            tokens=tokens,
            positions=np.concatenate(positions),
            candidates=np.concatenate([example.candidates for example in examples]),
            gold=np.array([example.gold for example in examples], dtype=np.int64),
            prefix=self.prefix,
        )

    def _fit(
        self,
        row: Mapping[str, Any],
        where: str,
        longest: Callable[[Mapping[str, str]], int],
    ) -> dict[str, str]:
        """The template's fields of ``row``, shortened until the example fits the length bound.

        Args:
            longest: fields to the number of tokens of the longest row that they make.

        Raises:
            DataError: too long, and shortening is off or not enough.
        """
        fields = self.template.fields_of(row, where)
        bound = self._bounds.length
        count = longest(fields)
        if count <= bound:
            return fields
        if not self._truncate:
            raise TooLong(where, count, bound)
        while count > bound:
            name = max(fields, key=lambda name: len(fields[name]), default=None)
            if name is None or not fields[name]:
                raise DataError(
                    f"{where}: the template and the answer alone have {count} tokens, "
                    f"the program's bound is {bound}; shorten them or export with --length {count}"
                )
            fields[name] = shorten(fields[name], count - bound, self._tokenizer)
            count = longest(fields)
        return fields

    def _encoded(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[tuple[int, int]],
        candidates: Sequence[Sequence[int]],
        gold: int,
        where: str,
    ) -> Encoded:
        """Token rows of any length, padded and checked, as an example."""
        tokens = np.full((len(rows), max(map(len, rows))), self._pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        example = Encoded(
            tokens,
            np.array(positions, dtype=np.int64).reshape(-1, 2),
            np.array(candidates, dtype=np.int64),
            gold,
        )
        # One that alone exceeds the tokens, positions or candidates of a pass is refused.
        for name, count, bound in (
            ("rows", example.tokens.size, self._bounds.tokens),
            ("positions", len(example.positions), self._bounds.positions),
            ("candidates", example.candidates.shape[1], self._bounds.candidates),
        ):
            if count > bound:
                what, wanted = name, count
                if name == "rows":
                    what, wanted = "tokens in its rows", -(-count // self._bounds.length)
                raise DataError(
                    f"{where}: needs {count} {what}, the program's bound is {bound}; "
                    f"export with --{name} {wanted}"
                )
        return example
