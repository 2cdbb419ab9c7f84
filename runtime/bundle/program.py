"""What a bundle says of its programs: sizes, files, methods, and what these take and return."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import BundleError

METHOD = "score"
"""Every program has it."""
GENERATE = "generate"
"""Programs that write have it, too."""
BEHIND = "behind"
"""``score`` of rows behind a prefix that was read before; programs may have it, in a graph of its
own or in that of ``score``."""
COLUMNS = "columns"
"""Makes what ``generate`` takes of values, once a text."""
LARGEST = 2**31 - 1
"""Largest size."""


@dataclass(frozen=True)
class Bounds:
    """Largest sizes that a program accepts; every size from 1 (length: 2) up to them works.

    ``rows`` counts rows of full length: what memory is planned for is their tokens, so more rows
    work if they are shorter (16 of 32 tokens where the bounds are 4 of 128). A program has at least
    two: an axis bounded by 1 is fixed, and shorter rows could not go through side by side.
    """

    probes: int
    """Rows of ``values`` evaluated in one pass."""
    rows: int
    """Rows of ``tokens`` at full length."""
    length: int
    """Tokens in a row."""
    positions: int
    """Hidden states scored in one pass."""
    candidates: int
    """Candidate tokens at each position."""
    prefix: int = 0
    """Tokens that may stand in front of every row, read once for all of them; 0 where rows hold all
    of their tokens."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = {"length": 2, "prefix": 0}.get(field.name, 1)
            if type(value) is not int or not least <= value <= LARGEST:
                raise BundleError(
                    f"bounds.{field.name} is {value!r:.40}, must be an integer of at least {least}"
                )

    @property
    def tokens(self) -> int:
        """Tokens of one pass, padding included, for each probe."""
        return self.rows * self.length


DEFAULT_BOUNDS = Bounds(probes=2, rows=2, length=128, positions=128, candidates=16, prefix=1024)
"""What an export takes by default. Passes of 256 tokens and two probes are as fast a token as
passes of 1024 (measured on SmolLM2, 2 cores: 0.97x), and their activations take a quarter of the
memory."""


@dataclass(frozen=True)
class Adapter:
    """What programs take as their fifth input, ``[D, S]``: it moves what the head reads."""

    width: int
    """D, of what the head reads."""
    blocks: tuple[int, ...]
    """Decoder blocks below each state that is read, the first of the hidden states."""


def token_bytes(cache: Iterable[tuple[int, int]]) -> int:
    """What keys and values of one token take, ``(KV, d)`` in each block."""
    return sum(2 * 4 * heads * width for heads, width in cache)


def block_shapes(
    cache: Sequence[tuple[int, int]], probes: int, tokens: int
) -> list[tuple[int, int, int, int]]:
    """Shapes of keys and values in turn, of so many tokens under so many rows of values.

    Args:
        cache: ``(KV, d)`` of each block.
    """
    return [
        (probes, heads, *shape)
        for heads, width in cache
        for shape in ((width, tokens), (tokens, width))
    ]


@dataclass(frozen=True)
class Generation:
    """What ``generate`` takes; see ``export.program.generate_program``."""

    chunk: int
    """Tokens of one pass."""
    context: int
    """Tokens of a whole text, prompt and answer."""
    cache: tuple[tuple[int, int], ...]
    """Heads and width ``(KV, d)`` of the keys and values of each block."""
    columns: int
    """F of what the method ``columns`` makes of values."""

    @property
    def token_bytes(self) -> int:
        """What the cache holds of one token."""
        return token_bytes(self.cache)


@dataclass(frozen=True)
class Program:
    """One form of the model that an engine runs. All of a bundle's take the same values."""

    format: str
    """What engines say that they run; no two programs of a bundle have the same."""
    files: tuple[str, ...]
    """Parts: the one that an engine opens, then others that it reads. Programs may share them."""
    activations: str
    """Their numbers, in words: losses of programs differ by this rounding."""
    methods: Mapping[str, Mapping[str, Any]]
    """Name to what is particular to it; ``score`` is always there."""

    @property
    def prefix_cache(self) -> tuple[tuple[int, int], ...]:
        """Heads and width ``(KV, d)`` of the keys and values of each block that ``behind`` takes;
        empty if the program reads no prefix."""
        pairs = self.methods.get(BEHIND, {}).get("cache", ())
        return tuple((heads, width) for heads, width in pairs)

    @property
    def generation(self) -> Generation | None:
        """What ``generate`` takes; None if the program only scores."""
        if GENERATE not in self.methods:
            return None
        found = self.methods[GENERATE]
        cache = tuple((heads, width) for heads, width in found["cache"])
        return Generation(found["chunk"], found["context"], cache, found["columns"])
