"""The bundle that a benchmark takes where none is given, and the model behind a name."""

from __future__ import annotations

from pathlib import Path

from ...data.fetch import RESOURCES, fetch


def default_bundle(model: str) -> Path:
    """The quickstart's bundle, prepared if need be."""
    from ...prepare import prepare

    return prepare(model_source(model)).bundle.path


def model_source(model: str) -> str:
    """What ``load_causal_lm`` takes: names that ``fetch`` knows are fetched."""
    return str(fetch(model)) if model in RESOURCES else model
