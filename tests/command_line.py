"""Calls of ``seedtune`` inside the test process, held to its promises about output."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seedtune.host_tools.cli import app
from typer.testing import CliRunner, Result


def call(*arguments: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> dict[str, Any]:
    """Run with --json: success, and exactly one object on stdout."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert isinstance(found, dict)
    return found


def bad(code: int, *arguments: object) -> str:
    """Run and fail with ``code``: one line on stderr, nothing on stdout, no traceback."""
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return errors[0].removeprefix("error: ")


WORDS = ["the film", "great plot", "dull", "bad and dull", "good", "I left because"]


def write_rows(file: Path, numbers: Iterable[int] = range(24), *, lengths: int = 3) -> Path:
    """Rows of those numbers, of one of two labels in turn, of so many lengths."""
    rows = ({"text": WORDS[n % 6] * (1 + n % lengths), "label": n % 2} for n in numbers)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
