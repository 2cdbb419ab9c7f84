"""README.md and docs/ as tests see them: files that a page shows, commands, Python and output."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seedtune.host_tools.commands.run_settings import said
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.settings import Option, options_of

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w.]+)`:$")
_EXIT = re.compile(r"^# exit code (\d+)$")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    file: str | None
    """Its name, where the line above the block ends in one (`` `task.json`: ``)."""


@dataclass(frozen=True)
class Command:
    """A line ``$ seedtune ...`` and what the page shows below it."""

    arguments: tuple[str, ...]
    shown: tuple[str, ...]
    exit_code: int


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page, named from the root."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        above = text[: match.start()].rstrip().rsplit("\n", 1)[-1]
        named = _FILE.search(above)
        found.append(Block(match[1], match[2], named[1] if named else None))
    return found


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows."""
    for block in blocks_of(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def python_of(page: str) -> list[str]:
    return [block.text for block in blocks_of(page) if block.language == "python"]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a ``console`` block, or of a ``sh`` block, whose lines have no prompt."""
    prompt = "$ " if block.language == "console" else ""
    lines = block.text.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith(f"{prompt}seedtune ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        shown = lines[start + 1 : end]
        codes = [int(match[1]) for line in shown if (match := _EXIT.match(line))]
        arguments = shlex.split(lines[start].removeprefix(prompt), comments=True)[1:]
        yield Command(
            tuple(arguments),
            tuple(line for line in shown if line.strip() and not _EXIT.match(line)),
            codes[0] if codes else 0,
        )


def names(line: str) -> str:
    """What a line of output promises: its fields if it is JSON, else its first word."""
    if line.startswith("{"):
        return ", ".join(json.loads(line))
    return line.split()[0]


def estimators_table() -> str:
    """The estimators, what each does and its options with their defaults, as the README has them
    (Markdown)."""

    def shown(one: Option) -> str:
        value = "" if one.default is None else f" {said(one.default)}"
        return f"`--{one.name.replace('_', '-')}`{value}"

    def row(name: str) -> str:
        spec = ESTIMATORS[name]
        own = options_of(spec.options).values()
        return f"| `{name}` | {spec.summary} | {', '.join(map(shown, own)) or 'none'} |"

    return "\n".join(
        [
            "| name | what it does | options and their defaults |",
            "|---|---|---|",
            *map(row, ESTIMATORS),
        ]
    )
