"""Errors that a user can act on. Each message is one line that names the culprit and the remedy.

The command line prints the message alone and leaves with ``exit_code``; anything else that
escapes is a defect of seedtune and keeps its traceback. A warning is one such line, too, for what
works but probably spoils the result.
"""

import warnings

_LONGEST = 1000


def one_line(message: str) -> str:
    """A message as it is shown: what came into it from files and libraries neither breaks the line
    nor moves the cursor, and does not go on for ever."""
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in message
    )


class SeedtuneError(Exception):
    """Base of every error caused by input, files or settings rather than by seedtune itself."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class SeedtuneWarning(UserWarning):
    """Input that works, but probably not as it was meant. One line, with what to write instead."""


class DataError(SeedtuneError):
    """A training, evaluation or calibration row or file is unusable."""

    exit_code = 3


class BundleError(SeedtuneError):
    """A bundle is truncated, altered, too new, or its parts disagree."""

    exit_code = 4


class JournalError(SeedtuneError):
    """A journal is damaged, locked, bound to another bundle, or cannot be written."""

    exit_code = 5


class EngineError(SeedtuneError):
    """The program cannot be loaded or refuses the shapes that it was given."""

    exit_code = 6


class TuningError(SeedtuneError):
    """The loop cannot go on: settings that do not fit, or losses that are not finite."""

    exit_code = 7


class ModelError(SeedtuneError):
    """A model cannot be read, or has a structure that export or profiling does not support."""

    exit_code = 8


class DownloadError(SeedtuneError):
    """Something could not be downloaded or uploaded, or is not the file that was expected."""

    exit_code = 9


def warn(message: str) -> None:
    """Warn with a ``SeedtuneWarning``. Python shows it once, the command line as one line."""
    warnings.warn(one_line(message), SeedtuneWarning, stacklevel=3)
