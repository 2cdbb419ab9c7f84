"""``seedtune bench NAME``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Benchmark to run.")],
    json: Json = False,
) -> None:
    """Measure one aspect of seedtune on this machine."""
    raise NotImplementedError
