"""Progress where there is no terminal: lines in a log, with the time left."""

import io
import json
import sys
import time

import pytest
from rich.console import Console
from seedtune.export.quiet import quiet
from seedtune.host_tools.commands import output as module
from seedtune.host_tools.commands.output import EVERY, Output, printable


@pytest.fixture
def clock(monkeypatch):
    """A function that lets seconds pass."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_stage_says_how_far_it_is_every_ten_seconds(clock, capsys):
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


def test_quick_counts_say_nothing_and_slow_ones_do(clock, capsys):
    with Output(False).counting("evaluating") as report:
        report(1, 4)
        clock(2 * EVERY)
        report(2, 4)
        report(3, 4)
    assert capsys.readouterr().err.splitlines() == ["evaluating: 50%, 40 s left"]


def test_what_is_waited_for_is_named_at_once(capsys):
    with Output(False).waiting("loading the model"):
        assert capsys.readouterr().err == "loading the model\n"


def test_progress_is_seen_while_the_libraries_are_silenced(capsys):
    with Output(False).stages() as report, quiet():
        report("lower", 0, 100)
        print("chatter of a library", file=sys.stderr)
    assert capsys.readouterr().err == "lower\n"


def test_a_long_check_of_a_bundle_is_shown_and_leaves_nothing(clock, capsys, monkeypatch):
    with Output(False).checking() as report:
        report(0, 100)
        clock(EVERY)
        report(40, 100)
        report(100, 100)
    lines = ["checking the bundle: 40%, after 10 s"]
    assert capsys.readouterr().err.splitlines() == lines
    output, screen = Output(False), io.StringIO()
    monkeypatch.setattr(output, "_screen", Console(file=screen, force_terminal=True, width=100))
    with output.checking() as report:
        report(40, 100)
    _shown, _, after = screen.getvalue().partition("checking the bundle")
    assert "40%" in after and after.rstrip().endswith("\x1b[2K")  # the bar's line is erased


def test_a_run_that_goes_on_counts_from_where_it_was(clock, capsys):
    with Output(False).following(50) as show:
        show("tuning", 50, 100, "")
        clock(EVERY)
        show("tuning", 51, 100, "loss 0.5")  # loads the program: it says nothing of the others
        for done in range(52, 60):
            clock(EVERY / 8)
            show("tuning", done, 100, "loss 0.4")
    assert capsys.readouterr().err.splitlines() == [
        "tuning: 51%, after 10 s  loss 0.5",
        "tuning: 59%, 51 s left  loss 0.4",
    ]


def test_lists_are_shown_as_people_write_them(capsys):
    Output(False).result(
        {
            "programs": [{"format": "executorch", "cache": [[3, 64], [3, 64]], "more": {}}],
            "shape": (576, 1152),
            "names": ["a", "b"],
            "best": [None, {"step": 3, "loss": 0.5}],
            "nothing": [],
        }
    )
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [[name, text.rstrip()] for name, text in lines] == [
        ["programs.1.format", "executorch"],
        ["programs.1.cache", "3 x 64, 3 x 64"],
        ["programs.1.more", "none"],
        ["shape", "576, 1152"],
        ["names", "a, b"],
        ["best.1", "-"],
        ["best.2.step", "3"],
        ["best.2.loss", "0.5"],
        ["nothing", "none"],
    ]


def test_a_silent_stage_still_gives_signs_of_life(monkeypatch, capsys):
    monkeypatch.setattr(module, "EVERY", 0.04)
    with Output(False).stages() as report:
        report("load", 0, 1)
        time.sleep(0.5)
    announced, *signs = capsys.readouterr().err.splitlines()
    assert announced == "load" and signs and signs[0].startswith("load: 0% after 0 s")


def test_a_terminal_shows_a_run_as_it_goes_on(monkeypatch):
    output, screen = Output(False), io.StringIO()
    monkeypatch.setattr(output, "_screen", Console(file=screen, force_terminal=True, width=120))
    with output.following(0) as show:
        for turn in range(2):  # an evaluation comes again
            show("evaluating", 3, 10, "")
            show("evaluating", 10, 10, "")
            for done in range(20 * turn, 20 * turn + 21):
                show("tuning", done, 120, f"loss {1 / (done + 1):.3f}  2.50 forwards/s  217 MB")
    last = screen.getvalue()[screen.getvalue().rindex("tuning") :]
    assert "40/120" in last and "loss 0.024  2.50 forwards/s  217 MB" in last


def test_a_large_number_of_bytes_is_said_in_megabytes(capsys):
    Output(False).result({"peak_rss_bytes": 359_022_592, "bytes": 1896, "best.bytes": 2_000_000})
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {k: v.strip() for k, v in shown.items()} == {
        "peak_rss_bytes": "359 MB", "bytes": "1896", "best.bytes": "2 MB"
    }  # fmt: skip


HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202egnp.exe \U000e0041 ordinary \u00e9"


def test_nothing_that_a_terminal_obeys_is_printed(capsys):
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
