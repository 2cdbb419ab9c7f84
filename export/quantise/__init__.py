"""Linear weights to int4, embeddings to int8."""

from seedtune.runtime.errors import ModelError

GPTQ, NEAREST = "gptq", "nearest"
"""Ways of rounding weights: with calibration text, or each by itself."""
DEFAULT_ROUNDING = GPTQ


def check_rounding(rounding: str) -> None:
    """Refuse a way of rounding that there is not.

    Raises:
        ModelError: it is unknown.
    """
    if rounding not in (GPTQ, NEAREST):
        raise ModelError(f"unknown rounding {rounding!r}; take {GPTQ} or {NEAREST}")
