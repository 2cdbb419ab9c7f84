"""Memory that a pass takes, memory there is, as Linux tells it, and passes that fit into it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..bundle import Bounds, Bundle, Generation
from ..bundle.program import token_bytes
from ..bundle.terms import SLOTS
from ..errors import TuningError
from ..tasks import Encoded
from .read_prefix import PIECE

_GROUPS = Path("/sys/fs/cgroup")
_V1, _V2 = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)
"""Files of a control group: its limit, what it uses; and the field of ``memory.stat`` that says
how much of that is cached files, which the kernel drops when memory is wanted."""


def resident_bytes() -> int | None:
    """Memory that this process holds now, None where the system does not tell."""
    return _field("/proc/self/status", "VmRSS:")


def peak_resident_bytes() -> int | None:
    """The most memory that this process has held; ``getrusage`` gives a child its parent's peak."""
    return _field("/proc/self/status", "VmHWM:")


def available_bytes() -> int | None:
    """Memory that could still be had, of the machine and of this process's control groups."""
    known = [_field("/proc/meminfo", "MemAvailable:"), *_left_in_groups(_GROUPS)]
    return min((each for each in known if each is not None), default=None)


def _left_in_groups(root: Path, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What is left in each group that this process is in and that has a limit."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files = root, _V2
        elif "memory" in controllers.split(","):
            top, files = root / "memory", _V1
        else:
            continue
        # Inside a container the path may be the host's, where only the top is there to see.
        place = top / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(top) and (left := _left(folder, *files)) is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / usage).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return most - used + (_field(str(folder / "memory.stat"), cached, unit=1) or 0)


def _field(file: str, name: str, unit: int = 1024) -> int | None:
    try:
        for line in Path(file).read_text(encoding="ascii").splitlines():
            if line.split(maxsplit=1)[:1] == [name]:
                return int(line.split()[1]) * unit
    except OSError:
        pass
    return None


MB = 10**6

WIDEST_SHARE = 3.0
HIDDEN_SHARE = 7.0
"""Floats that a token and probe keep at once, in widths of the widest matrix and of the hidden
state: XNNPACK's workspace and the arena. SmolLM2 took 35 kB a token."""
PAGES = 20 * MB
"""Code and constants that the first pass touches and the workspace that it begins with."""


@dataclass(frozen=True)
class PassMemory:
    """What one pass adds to a process that holds an open program, in bytes."""

    token: int
    """For each token, padding included, and probe: activations."""
    position: int
    """For each scored position and probe: its logits and their log-softmax, and what terms are
    learned from."""
    tables: int
    """Token embeddings, pages of the program file that come in as tokens occur; the adapter and
    terms, as the program keeps and packs them."""
    prefix_token: int = 0
    """For each token of a prefix and probe: its keys and values."""
    prefix_pair: int = 0
    """For each token, each of a prefix, and probe: scores of all heads, and their softmax."""
    prefix_piece: int = PIECE
    """Tokens of a prefix that are read in one pass, at most."""

    @classmethod
    def of(
        cls,
        *,
        hidden: int,
        widest: int,
        vocabulary: int,
        adapter: tuple[int, int] | None,
        terms: Sequence[tuple[int, int]] = (),
        cache: Sequence[tuple[int, int]] = (),
        prefix_piece: int = PIECE,
    ) -> "PassMemory":
        """From a model's widths: hidden state, widest matrix (either side), vocabulary; the shape
        of the adapter and those of the terms that the program takes; and of a prefix ``(KV, d)``
        of each block and the tokens that are read in one pass."""
        width, states = adapter or (0, 0)
        tuned = width * states + sum(out * rank for out, rank in terms)
        return cls(
            token=round(4 * (WIDEST_SHARE * widest + HIDDEN_SHARE * hidden)),
            position=2 * 4 * (vocabulary + hidden * (len(terms) // SLOTS)),
            tables=vocabulary * (hidden + 4) + 2 * 4 * tuned,
            prefix_token=token_bytes(cache),
            # Heads are as wide as those of the keys, and as wide as the hidden state together.
            prefix_pair=2 * 4 * -(-hidden // cache[0][1]) if cache else 0,
            prefix_piece=prefix_piece,
        )

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> "PassMemory":
        """From what a bundle says of its model."""
        model = bundle.manifest["model"]
        # A program that writes reads a prefix as it reads a prompt.
        pieces = [
            PIECE if (own := each.generation) is None else own.chunk for each in bundle.programs
        ]
        return cls.of(
            hidden=model["hidden_size"],
            widest=max(max(layer.shape) for layer in bundle.layers),
            vocabulary=model["vocab_size"],
            adapter=bundle.adapter_shape,
            terms=bundle.terms_shapes,
            cache=bundle.prefix_cache,
            prefix_piece=max(pieces),
        )

    def bytes(self, bounds: Bounds, prefix: int = 0) -> int:
        """Bytes of passes as large as ``bounds``, behind a prefix of so many tokens."""
        token = self.token + prefix * self.prefix_pair
        tokens = max(bounds.tokens, self.prefix_piece) if prefix else bounds.tokens
        each = tokens * token + bounds.positions * self.position
        return bounds.probes * (each + prefix * self.prefix_token) + self.tables + PAGES


def fit_passes(
    bounds: Bounds,
    memory: PassMemory,
    examples: Sequence[Encoded],
    *,
    prefix: int = 0,
    limit: int | None = None,
    reserve: int = 0,
    now: tuple[int, int] | None = None,
) -> Bounds:
    """Bounds of passes over ``examples`` that fit into memory.

    Where the program's own do not: first fewer positions (which only passes over short rows fill),
    then fewer probes, then fewer rows.

    Args:
        bounds: of the program; the result never exceeds them.
        prefix: tokens in front of every row.
        limit: bytes that this process may hold in all; by default what the system has left. A
            system that does not tell is taken to have enough.
        reserve: bytes that the process will take in addition.
        now: bytes held and left (see ``Engine.memory``); by default this process's.

    Raises:
        TuningError: one example under one probe does not fit.
    """
    held, free = (resident_bytes(), available_bytes()) if now is None else now
    if held is None or (limit is None and free is None):
        return bounds
    room = min(each for each in (limit and limit - held, free) if each is not None) - reserve
    passes = bounds
    for passes in _ever_smaller(bounds, examples):
        if memory.bytes(passes, prefix) <= room:
            return passes
    bound = limit if limit is not None and (free is None or limit - held <= free) else None
    raise _does_not_fit(memory, passes, prefix, held + reserve, room, bound)


def text_bytes(generation: Generation, memory: PassMemory, tokens: int) -> int:
    """What writing a text of ``tokens`` adds to a process that holds the open program."""
    passing = min(tokens, generation.chunk) * memory.token + memory.position
    columns = 2 * 4 * generation.columns  # what the program made, and the copy that is given to it
    return tokens * generation.token_bytes + passing + columns + memory.tables + PAGES


def fit_text(generation: Generation, memory: PassMemory, *, limit: int | None = None) -> int:
    """Tokens of a text, prompt and answer, that fit into memory; at most ``generation.context``.

    Args:
        limit: as in ``fit_passes``.

    Raises:
        TuningError: not even ``generation.chunk`` do.
    """
    held, free = resident_bytes(), available_bytes()
    if held is None or (limit is None and free is None):
        return generation.context
    room = min(each for each in (limit and limit - held, free) if each is not None)
    least = text_bytes(generation, memory, generation.chunk)
    if least > room:
        enough = math.ceil(1.05 * (held + least) / MB)
        raise TuningError(
            f"writing takes {least / MB:.0f} MB beside the {held / MB:.0f} MB that are held, "
            f"{max(room, 0) / MB:.0f} MB are there: raise the memory limit "
            f"(--memory-limit {enough}MB) or end other programs"
        )
    more = (room - least) // generation.token_bytes
    return min(generation.context, generation.chunk + more)


def _ever_smaller(bounds: Bounds, examples: Sequence[Encoded]) -> Iterator[Bounds]:
    """The program's bounds, but for positions that no pass over ``examples`` has; then less."""
    length = max(2, *(example.length for example in examples))
    shortest = min(example.length for example in examples)
    least = max(example.rows for example in examples)
    dense = max(-(-len(example.positions) // example.rows) for example in examples)

    def positions(rows: int) -> int:
        return min(bounds.positions, max(rows, least) * dense)

    rows = max(least, bounds.tokens // length)
    yield replace(bounds, positions=positions(bounds.tokens // shortest))
    for probes in range(bounds.probes, 0, -1):
        yield replace(bounds, probes=probes, positions=positions(rows))
    one = replace(bounds, probes=1, length=length)
    yield replace(one, rows=rows, positions=positions(rows))
    while rows > least:
        rows = max(least, rows // 2)
        yield replace(one, rows=rows, positions=positions(rows))


def _does_not_fit(
    memory: PassMemory, least: Bounds, prefix: int, held: int, room: int, limit: int | None
) -> TuningError:
    """Tells of a process that takes ``held`` bytes without a pass; ``limit`` where it binds."""
    logits = least.positions * memory.position
    activations = least.tokens * memory.token
    lower = (
        "score fewer positions (shorter completions)"
        if logits > activations
        else f"use texts shorter than {least.length} tokens (or export with a lower --length)"
    )
    if memory.bytes(least, prefix) > 2 * memory.bytes(least):
        lower = f"put less than {prefix} tokens in front of every row (fewer demonstrations)"
    need = held + memory.bytes(least, prefix)
    what = f"one example needs {need / MB:.0f} MB, {held / MB:.0f} MB of them before any pass; "
    if limit is None:
        there = (held + max(room, 0)) / MB
        return TuningError(f"{what}{there:.0f} MB are there: end other programs, or {lower}")
    enough = math.ceil(1.05 * need / MB)  # what is held goes up and down a little
    return TuningError(
        f"{what}the limit is {limit / MB:.0f} MB: raise the memory limit "
        f"(--memory-limit {enough}MB), or {lower}"
    )
