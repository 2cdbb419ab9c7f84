"""Linear weights to int4, embeddings to int8."""

from seedtune.runtime.errors import ModelError

DEFAULT_ROUNDING = "gptq"


def check_rounding(rounding: str) -> None:
    """Refuse a way of rounding that there is not.

    Raises:
        ModelError: it is unknown.
    """
    if rounding not in (DEFAULT_ROUNDING, "nearest"):
        raise ModelError(f"unknown rounding {rounding!r}; take {DEFAULT_ROUNDING} or nearest")
