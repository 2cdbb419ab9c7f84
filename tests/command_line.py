"""Calls of ``seedtune`` inside the test process, held to its promises about output."""

import json
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
