"""The tokenizer at work: on a text, on a prompt and what continues it, and watched on texts from
outside, where it may fail in its own way or not come back.

A tokenizer is a file of the bundle, with regular expressions in it. Some texts make it panic (the
library's word for a failed assertion in Rust, which no ``except Exception`` sees), others keep it
busy for hours. Both become an error that names the row.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tokenizers import Encoding, Tokenizer

from ..errors import DataError

SECONDS = 60.0
"""Processor time of this process after which a text is given up. SmolLM2's tokenizer takes 20 ms
for 10 000 words."""
_PARALLEL = "TOKENIZERS_PARALLELISM"

Result = TypeVar("Result")


def tokenise(tokenizer: Tokenizer, text: str, *, special: bool = True) -> Encoding:
    """``tokenizer.encode``, during which other threads can run: the library's own keeps them out.

    Args:
        special: whether to add special tokens, such as a leading BOS.
    """
    found: Encoding = tokenizer.encode_batch([text], add_special_tokens=special)[0]
    return found


def shorten(text: str, tokens: int, tokenizer: Tokenizer) -> str:
    """Drop at least one character and about ``tokens`` tokens from the end of ``text``.

    The count is about right only, since the text is tokenised alone here; the caller counts
    again and repeats.
    """
    offsets = tokenise(tokenizer, text, special=False).offsets
    if tokens >= len(offsets):
        return ""
    end = min(offsets[-tokens][0], len(text) - 1)
    return text[:end].rstrip()


class Watch:
    """Where ``watched`` work is."""

    def __init__(self, where: str) -> None:
        self.left = False
        self.at(where)

    def at(self, where: str) -> None:
        """To be called before each piece of the work; ``where`` begins its errors."""
        if self.left:
            raise SystemExit  # ends the thread, without a word
        self.where, self.since = where, time.process_time()


def watched(work: Callable[[Watch], Result], where: str) -> Result:
    """What ``work`` returns. It runs in a thread, which is left behind if a piece does not end: a
    template's loop is broken off there, a tokenizer's goes on.

    Raises:
        DataError: the tokenizer fails or does not come back; names the piece. Any other error of
            the work is raised as it is.
    """
    watch, found, errors = Watch(where), [], []

    def run() -> None:
        try:
            found.append(work(watch))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="seedtune-tokenising", daemon=True)
    with _serial():
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                if time.process_time() - watch.since > SECONDS and thread.is_alive():
                    ident = ctypes.c_ulong(thread.ident or 0)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
                    raise DataError(
                        f"{watch.where}: the bundle's tokenizer or chat template has not come to "
                        f"an end after {SECONDS:.0f} s of computing; shorten the text or leave it "
                        "out"
                    )
        finally:
            watch.left = True
    if errors:
        raise _explained(errors[0], watch.where)
    result: Result = found[0]
    return result


def _explained(error: BaseException, where: str) -> BaseException:
    # The library's errors are of no type of their own; its panics are of one that has no module.
    if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
        return error
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    shown = reason if reason.isprintable() else repr(reason)
    explained = DataError(f"{where}: the bundle's tokenizer fails on this text ({shown})")
    explained.__cause__ = error
    return explained


@contextmanager
def _serial() -> Iterator[None]:
    """Keep the library from threads of its own, which would outlive the work and not a fork."""
    own = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if own is None:
            os.environ.pop(_PARALLEL, None)
        else:
            os.environ[_PARALLEL] = own
