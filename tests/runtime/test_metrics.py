"""Metrics stay small and cheap however long a run is, and no line of theirs harms a reader."""

import json
import time

import pytest
from seedtune.runtime.journal.metrics import MetricsLog, cut_metrics, read_metrics
from seedtune.runtime.journal.run_folder import METRICS_FILE


def test_of_a_long_run_only_some_steps_have_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("seedtune.runtime.journal.metrics.MOST", 100)
    for start, steps in ((0, 250), (250, 500)):
        log = MetricsLog(tmp_path, steps)
        for step in range(start, steps):
            log.append(kind="step", step=step, loss=1.0, seconds=0.5)
        log.close()
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == [*range(0, 250, 3), *range(250, 500, 5)]
    assert [line["step"] for line in read_metrics(tmp_path, steps=100)] == [*range(0, 100, 3)]


def test_numbers_that_json_does_not_know_are_null(tmp_path):
    log = MetricsLog(tmp_path, 9)
    log.append(kind="step", step=1, loss=1.0, seconds=float("nan"))
    log.append(kind="step", step=2, loss=float("nan"), seconds=0.5)
    log.close()
    found = read_metrics(tmp_path)
    now = time.time()
    assert all(now - 60 < line.pop("time") <= now + 1 for line in found)
    assert found == [{"kind": "step", "step": 2, "loss": None, "seconds": 0.5}]


@pytest.mark.parametrize(
    "line",
    [
        '{"kind":"step","step":1e999,"loss":1,"seconds":1}',
        '{"kind":"step","step":1.5,"loss":1,"seconds":1}',
        '{"kind":[],"step":1,"loss":1,"seconds":1}',
        '{"kind":"step","step":1,"loss":"x","seconds":1}',
        '{"kind":"step","step":1,"loss":1}',
        '{"kind":"step","step":1,"loss":1,"seconds":1,"skipped":{}}',
        '{"kind":"other","step":0,"loss":1,"seconds":1}',
        "[1]",
        "[" * 5000,
        "5",
        "\x00\xff",
    ],
)
def test_lines_that_make_no_sense_are_left_out(tmp_path, line):
    good = {"kind": "step", "step": 3, "loss": 0.5, "seconds": 0.1}
    text = f"{line}\n{json.dumps(good)}\n{line}"
    (tmp_path / METRICS_FILE).write_text(text, encoding="latin-1")
    assert read_metrics(tmp_path) == [good]
    log = MetricsLog(tmp_path, 9)
    log.append(kind="step", step=4, loss=0.25, seconds=0.1)
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 4]


def test_of_a_file_that_something_else_made_longer_only_the_beginning_is_read(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("seedtune.runtime.journal.metrics._MOST_READ", 5000)
    line = json.dumps({"kind": "step", "step": 7, "loss": 1.0, "seconds": 0.5}) + "\n"
    (tmp_path / METRICS_FILE).write_text(line + "x" * 20_000 + "\n" + line.replace("7", "8"))
    assert [line["step"] for line in read_metrics(tmp_path)] == [7]


def test_lines_of_steps_that_are_undone_are_cut(tmp_path):
    log = MetricsLog(tmp_path, 9)
    for step in range(1, 6):
        log.append(kind="step", step=step, loss=1.0, seconds=0.5)
    log.close()
    with open(tmp_path / METRICS_FILE, "ab") as file:
        file.write(b'nonsense\n{"kind":"step","step":5,')
    cut_metrics(tmp_path, 3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    cut_metrics(tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()
