"""What ``tune`` says at its end: figures of rows that chose nothing, the curve, memory."""

import json
from typing import ClassVar

import pytest
from command_line import WORDS, bad, call, good
from journal_bytes import header
from seedtune.host_tools.reports.curves import duration, read_curve, seconds_of_as_many_again
from seedtune.runtime import engines, open_model
from seedtune.runtime.journal.format import Evaluation, Step
from seedtune.runtime.journal.history import History
from tiny_bundle import write_tiny_bundle
from value_engine import HiddenEngine, ValueEngine

HEADER = header()
TWO_POINT = ["--estimator", "two-point", "--eps", 0.01, "--lr", 0.01, "--batch-size", 4]


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    return write_tiny_bundle(tmp_path / "bundle").path


def rows_file(file, numbers):
    """Rows of those numbers, of one of two labels in turn, no two of whose texts are alike."""
    rows = [{"text": f"{WORDS[n % 6]} {WORDS[n % 5]} {WORDS[n % 7 % 6]}", "label": n % 2}
            for n in numbers]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class TestRowsThatJudge:
    def test_half_of_the_held_out_rows_choose_the_step_and_the_others_judge_it(
        self, tmp_path, bundle
    ):
        data = rows_file(tmp_path / "data.jsonl", range(24))
        run = tmp_path / "run"
        found = good("tune", bundle, run, "--train", rows_file(tmp_path / "t.jsonl", range(9, 40)),
                     "--data", data, "--steps", 6, "--eval-every", 2, *TWO_POINT)  # fmt: skip
        assert (found["choosing_rows"], found["judged_rows"]) == (12, 12)
        # Every other row of either label.
        choosing = rows_file(tmp_path / "c.jsonl", [n for n in range(24) if n % 4 < 2])
        judging = rows_file(tmp_path / "j.jsonl", [n for n in range(24) if n % 4 > 1])
        before, after = (
            good("evaluate", bundle, "--data", judging, *more) for more in ([], ["--run", run])
        )
        for figure in ("loss", "accuracy"):
            assert found["before"][figure] == pytest.approx(before[figure])
            assert found["after"][figure] == pytest.approx(after[figure])
        start = good("journal", "show", run)["evaluations"][0]
        assert start[1] == pytest.approx(good("evaluate", bundle, "--data", choosing)["loss"])
        assert start[1] != pytest.approx(before["loss"])  # or swapped halves would look the same

    def test_with_test_rows_all_held_out_rows_choose(self, tmp_path, bundle):
        data, test = (rows_file(tmp_path / f"{n}.jsonl", range(n, n + 11)) for n in (0, 40))
        train = rows_file(tmp_path / "train.jsonl", range(60, 90))
        found = good("tune", bundle, tmp_path / "run", "--train", train, "--data", data,
                     "--test", test, "--steps", 2, *TWO_POINT)  # fmt: skip
        assert (found["choosing_rows"], found["judged_rows"]) == (11, 11)
        loss = good("evaluate", bundle, "--data", test)["loss"]
        assert found["before"]["loss"] == pytest.approx(loss)
        # Without rows that choose, the last step ships, and is judged all the same.
        alone = good("tune", bundle, tmp_path / "alone", "--train", train, "--test", test,
                     "--steps", 2, *TWO_POINT)  # fmt: skip
        assert (alone["choosing_rows"], alone["judged_rows"]) == (0, 11)
        assert alone["after"]["step"] == 2 and alone["before"] == found["before"]

    def test_a_run_from_python_goes_on_with_all_its_held_out_rows(self, tmp_path, bundle):
        train, data = (rows_file(tmp_path / f"{n}.jsonl", range(n, n + 12)) for n in (0, 20))
        settings = {"estimator": "two-point", "eps": 0.01, "lr": 0.01, "batch_size": 4, "steps": 2}
        with open_model(bundle) as model, model.tuner(
            tmp_path / "run", train, data, **settings
        ) as tuner:  # fmt: skip
            for _ in tuner:
                pass
        asked = "tune", bundle, tmp_path / "run", "--train", train, "--data", data, "--steps", 4
        result = call(*asked)
        assert result.exit_code == 0, result.output
        assert "of the rows that chose the step, which flatters it" in " ".join(
            result.stderr.split()
        )
        assert good(*asked)["judged_rows"] == 0

    def test_twenty_answers_before_and_after_are_kept_for_the_owner_alone(self, tmp_path, bundle):
        data = rows_file(tmp_path / "data.jsonl", range(60))
        good("tune", bundle, tmp_path / "run", "--train", data, "--data", data, "--steps", 2,
             *TWO_POINT)  # fmt: skip
        file = tmp_path / "run" / "outcome.json"
        kept = json.loads(file.read_text())
        assert file.stat().st_mode & 0o077 == 0
        assert len(kept["rows"]) == 20
        assert {row["right"] for row in kept["rows"]} == {"0", "1"}
        assert set(kept["rows"][0]) == {"fields", "right", "before", "after"}


class TestAnswers:
    """Labels out of alphabetical order, one of them rare."""

    SPEC: ClassVar = {"kind": "classification", "template": "{text} It was", "label_field": "label",
                      "verbalisers": {"good": " great", "bad": " terrible"}}  # fmt: skip

    @pytest.fixture
    def files(self, tmp_path):
        rows = [{"text": f"dull {'x ' * (n % 5)}", "label": "bad" if n % 4 else "good"}
                for n in range(40)]  # fmt: skip
        data, task = tmp_path / "rows.jsonl", tmp_path / "task.json"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task.write_text(json.dumps(self.SPEC))
        return data, task

    def test_evaluate_counts_them_and_says_where_the_most_frequent_does_as_well(
        self, bundle, files
    ):
        data, task = files
        asked = "evaluate", bundle, "--data", data, "--task", task
        found = good(*asked)
        counts = found["counts"]
        assert list(counts) == list(counts["bad"]) == ["bad", "good"]
        assert [sum(row.values()) for row in counts.values()] == [30, 10]
        right = counts["good"]["good"] + counts["bad"]["bad"]
        assert found["accuracy"] == pytest.approx(right / 40)
        assert found["most_frequent"] == {"answer": "bad", "share": 0.75}
        assert 0 <= found["macro_f1"] <= 1
        told = call(*asked)
        assert ("no better than always answering 'bad'" in told.stderr) == (right <= 30)
        assert right <= 30  # or the line above tests nothing
        assert "right answer  given bad  given good" in told.stdout

    def test_tune_and_the_page_show_them_of_the_rows_that_judge(self, tmp_path, bundle, files):
        data, task = files
        run = tmp_path / "run"
        found = good("tune", bundle, run, "--train", data, "--data", data, "--task", task,
                     "--steps", 2, *TWO_POINT)  # fmt: skip
        assert sum(sum(row.values()) for row in found["counts"].values()) == 20
        assert found["most_frequent"] == {"answer": "bad", "share": 0.75}
        assert {"macro_f1"} <= set(found["before"]) & set(found["after"])
        good("report", run)
        page = (run / "report.html").read_text()
        assert "Always answering bad would be right for 75.0%" in page
        assert "<th>bad<th>good" in page


class TestCurve:
    def test_the_summary_says_what_the_curve_says_and_what_more_would_take(self, tmp_path, bundle):
        rows = rows_file(tmp_path / "rows.jsonl", range(24))
        found = good("tune", bundle, tmp_path / "run", "--train", rows, "--data", rows,
                     "--steps", 40, "--eval-every", 5, *TWO_POINT)  # fmt: skip
        assert found["curve"].startswith("the held-out loss ")
        assert found["twice_as_many"].endswith(" s more (--steps 80)")
        plain = good("tune", bundle, tmp_path / "plain", "--train", rows, "--steps", 40, *TWO_POINT)
        assert plain["curve"].startswith("the loss of the training rows ")

    @pytest.mark.parametrize(
        ("losses", "shape", "text"),
        [
            # Even over doublings: twice the rows bring as much again.
            ([1.0, 0.9, 0.7, 0.58, 0.5, 0.436], "falling", "would bring it to about 0.2"),
            # The last third hardly falls, and yet a doubling brings much.
            ([0.7, 0.5, 0.4, 0.37, 0.34, 0.33, 0.315, 0.305], "falling", "about 0.2"),
            # A run of 1,000 rows that was told "flat" at 0.329: twice the rows took it to 0.257.
            (
                [1.08, 0.541, 0.477, 0.428, 0.403, 0.375, 0.362, 0.341, 0.329],
                "falling",
                "about 0.26",
            ),
            ([1.0, 0.6, 0.5, 0.5, 0.5, 0.499], "flat", "is flat (-0.0"),
            ([1.0, 0.6, 0.5, 0.55, 0.6, 0.7], "overfitting", "since 320 rows were read (0.5, now"),
            ([0.5, 0.6, 0.6, 0.7], "no gain", "never fell below its start"),
            ([0.5, 0.6], "no gain", "never fell below its start"),
            ([1.0, 0.7, 0.5, 0.65, 0.48, 0.62], "unknown", "scatter too much"),
            ([1.0, 0.5], "unknown", "more come with --eval-every N"),
        ],
    )
    def test_held_out_losses(self, losses, shape, text):
        history = History(HEADER, "j")
        for number, loss in enumerate(losses):
            for _ in range(10 if number else 0):
                history.add(Step((0.0,)))
            history.add(Evaluation(loss, 0.5))
        found = read_curve(history, [])
        assert found.shape == shape and text in found.text

    @pytest.mark.parametrize(("slope", "shape"), [(-0.02, "falling"), (0.0, "flat")])
    def test_losses_of_batches_where_nothing_is_held_out(self, slope, shape):
        history = History(HEADER, "j")
        steps = [{"loss": 2 + slope * n + 0.3 * (-1) ** n} for n in range(60)]
        assert read_curve(history, steps).shape == shape
        assert read_curve(history, steps[:9]).shape == "unknown"

    def test_as_many_again_counts_steps_that_were_not_written_down(self):
        history = History(HEADER, "j")
        for _ in range(10):
            history.add(Step((0.0,)))
        history.add(Evaluation(1.0, 0.5))
        lines = [{"kind": "step", "seconds": 2.0}, {"kind": "step", "seconds": 4.0},
                 {"kind": "evaluation", "seconds": 5.0}]  # fmt: skip
        assert seconds_of_as_many_again(history, lines) == 35.0
        assert seconds_of_as_many_again(history, []) is None

    def test_durations(self):
        assert [duration(n) for n in (95, 420, 9000)] == ["95 s", "7 min", "2.5 h"]


class TestReadout:
    @pytest.fixture
    def hidden(self, tmp_path, monkeypatch):
        monkeypatch.setattr(engines, "open_engine", lambda *_, **__: HiddenEngine())
        return write_tiny_bundle(tmp_path / "hidden", hidden_blocks=[1]).path

    def test_it_neither_takes_nor_prints_what_means_nothing_to_it(self, tmp_path, hidden):
        rows = rows_file(tmp_path / "rows.jsonl", range(24))
        asked = ["tune", hidden, tmp_path / "run", "--train", rows, "--data", rows]
        for option, value in (("--lr", 0.5), ("--eps", 0.01), ("--schedule", "linear")):
            assert "estimator readout has no option" in bad(7, *asked, option, value)
        assert not (tmp_path / "run").exists()
        found = good(*asked)
        assert not {"lr", "eps"} & set(found)
        assert "each row is used once" in found["twice_as_many"]


def test_every_summary_has_its_peak_of_memory(tmp_path, bundle):
    """Of profile and export: see test_cli_model."""
    rows = rows_file(tmp_path / "rows.jsonl", range(24))
    for command in (["tune", bundle, tmp_path / "run", "--train", rows, "--steps", 2, *TWO_POINT],
                    ["evaluate", bundle, "--data", rows],
                    ["predict", bundle, "--data", rows]):  # fmt: skip
        assert 10**7 < good(*command)["peak_rss_bytes"] < 10**11
        result = call(*command)
        assert " MB" in result.stdout + result.stderr
