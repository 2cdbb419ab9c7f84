"""The kinds of parts that there are."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from . import answer_head, text_part
from .part import Description, Part, PartKind

KINDS: dict[str, Callable[[Bundle], PartKind | None]] = {
    answer_head.KIND: answer_head.AnswerHeads.of,
    text_part.KIND: text_part.TextHeads.of,
}
"""By name; None where a bundle has nothing for one."""


def kinds_of(bundle: Bundle) -> dict[str, PartKind]:
    """Those that a run on ``bundle`` may have, by name."""
    found = {name: of(bundle) for name, of in KINDS.items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def restored(
    kinds: Mapping[str, PartKind],
    description: Description | None,
    own: NDArray[np.float32] | None = None,
) -> Part | None:
    """The part that was so described, of zeros unless ``own`` says otherwise; None for None.

    Raises:
        ValueError: a kind that is unknown or that the bundle has nothing for, a description that
            makes no sense, or other numbers than it says.
    """
    if description is None:
        return None
    kind = description.get("kind") if isinstance(description, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"a part of kind {kind!r:.40} is unknown; known: {', '.join(KINDS)}")
    if kind not in kinds:
        raise ValueError(f"the bundle has nothing for a part of kind {kind}")
    return kinds[kind].restore(description, own)
