"""Progress where there is no terminal: lines in a log, with the time left."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from seedtune.host_tools.commands import output as module
from seedtune.host_tools.commands.output import EVERY, Output, printable


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that lets seconds pass."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_stage_says_how_far_it_is_every_ten_seconds(clock: Any, capsys: Any) -> None:
    with Output(False).stages() as report:
        report("lower", 0, 100)
        for done in range(1, 31):
            clock(EVERY / 10)
            report("lower", done, 100)
        report("write", 1, 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "lower",
        "lower: 10%, 90 s left",
        "lower: 20%, 80 s left",
        "lower: 30%, 70 s left",
        "write",
    ]


def test_quick_counts_say_nothing_and_slow_ones_do(clock: Any, capsys: Any) -> None:
    with Output(False).counting("evaluating") as report:
        report(1, 4)
        clock(2 * EVERY)
        report(2, 4)
        report(3, 4)
    assert capsys.readouterr().err.splitlines() == ["evaluating: 50%, 40 s left"]


def test_a_run_that_goes_on_counts_from_where_it_was(clock: Any, capsys: Any) -> None:
    with Output(False).tuning(100, 50) as report:
        clock(EVERY)
        report(60, "loss 0.5")
    assert capsys.readouterr().err.splitlines() == ["tuning: 60%, 40 s left  loss 0.5"]


HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202egnp.exe \U000e0041 ordinary \u00e9"


def test_nothing_that_a_terminal_obeys_is_printed(capsys: Any) -> None:
    shown = printable(HOSTILE)
    assert shown.isprintable() and shown.startswith(r"\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202egnp")
    Output(False).result({"note": HOSTILE, HOSTILE: 1})
    Output(False).note("one\ntwo " + HOSTILE)
    Output(True).result({"note": HOSTILE})
    out, err = capsys.readouterr()
    *table, line = out.splitlines()
    for text in (*table, line, *err.splitlines()):
        assert text.isprintable(), text
    assert json.loads(line) == {"note": HOSTILE}
    assert err.startswith("one\ntwo ")
