"""``seedtune quickstart``."""

from __future__ import annotations

from .options import Json


def quickstart(json: Json = False) -> None:
    """Profile, export and tune a real model, and show its accuracy before and after."""
    raise NotImplementedError
