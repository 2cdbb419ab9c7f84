"""Where a run starts: the values it begins with and the identity of the bundle they come from."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Bundle
from ..engines.memory import PassMemory
from ..errors import BundleError
from ..scoring.text_head import TextHead


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
    text: TextHead | None = None
    """What the bundle has for a head for text."""

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
            TextHead.of(bundle),
        )

    def extended(self, own_entries: int) -> "Start":
        """The start of a run whose estimator puts that many weights, zeros at first, behind the
        sensitive values."""
        if not own_entries:
            return self
        values = np.concatenate([self.values, np.zeros(own_entries, np.float32)])
        values.flags.writeable = False
        return replace(self, values=values)
