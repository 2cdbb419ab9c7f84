"""Keeps the chatter of the model libraries off the terminal, and what they raise short."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences log records below ERROR, Python warnings and everything printed to stderr.

    Loading a GGUF file writes a tqdm bar that no setting turns off, and importing torchao reports
    kernels for GPUs that are not there. A progress bar of our own must therefore hold its own
    handle to the terminal while this is active. Errors still arrive as exceptions.
    """
    previous = logging.root.manager.disable
    logging.disable(max(previous, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def first_line(error: BaseException) -> str:
    """What an error says, or else its type, as a part of a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
