"""Where a run starts: the values it begins with and the identity of the bundle they come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Bundle
from ..engines.memory import PassMemory
from ..errors import BundleError
from ..scoring.part import Description, PartKind
from ..scoring.parts import kinds_of, restored
from ..scoring.values import Values


@dataclass(frozen=True)
class Start:
    """What a journal is bound to."""

    values: NDArray[np.float32]
    """float32 ``[K]``; never modified."""
    bundle_sha256: str
    bounds: Bounds
    blocks: NDArray[np.int64] | None = None
    """int64 ``[K]``, decoder block of each value, ascending; None where it is not known."""
    block_count: int = 0
    memory: PassMemory | None = None
    """What a pass of the bundle's program takes; None leaves memory unchecked."""
    kinds: Mapping[str, PartKind] = field(default_factory=dict)
    """Kinds of parts that a run on the bundle may have, by name."""

    @classmethod
    def of(cls, bundle: Bundle) -> "Start":
        """The start that a bundle's exported values give.

        Raises:
            BundleError: a value is not finite, so no step could be taken.
        """
        values = bundle.values.astype(np.float32)
        if not np.isfinite(values).all():
            raise BundleError(f"{bundle.path}: values hold a number that is not finite")
        values.flags.writeable = False
        memory = PassMemory.of_bundle(bundle)
        return cls(
            values,
            bundle.sha256,
            bundle.bounds,
            bundle.blocks(),
            int(bundle.manifest["model"]["layers"]),
            memory,
            kinds_of(bundle),
        )

    def tuned_from(self, part: Description | None) -> Values:
        """What a run with that part begins with: copies that it may move, the part's of zeros.

        Raises:
            ValueError: the part makes no sense on this bundle.
        """
        return Values(self.values.copy(), restored(self.kinds, part))
