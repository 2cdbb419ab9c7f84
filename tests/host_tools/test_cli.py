"""The command line: one JSON object, one-line errors, exit codes that mean something."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import bad, call, good, write_rows
from seedtune import host_tools
from seedtune.host_tools.cli import app
from seedtune.host_tools.commands.output import Output
from seedtune.host_tools.data import datasets
from seedtune.runtime import engines
from seedtune.runtime.journal.file import JournalWriter, read_journal
from seedtune.runtime.journal.format import End, Note
from seedtune.runtime.scoring import known_forwards
from tiny_bundle import TASK, write_tiny_bundle
from value_engine import HiddenEngine, ValueEngine


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "bundle").path


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def run(tmp_path, bundle, rows, engine):
    folder = tmp_path / "run"
    good("tune", bundle, folder, "--train", rows, "--data", rows, "--steps", 6, "--eval-every", 2,
         "--batch-size", 4, "--estimator", "two-point", "--eps", 0.01, "--lr", 0.01)  # fmt: skip
    return folder


class TestTune:
    def test_the_result_says_what_was_done(self, tmp_path, bundle, rows, engine):
        found = good("tune", bundle, tmp_path / "run", "--train", rows, "--data", rows,
                     "--steps", 4, "--batch-size", 4, "--eps", 0.01)  # fmt: skip
        assert found["steps"] == 4
        assert found["forwards"] == 8
        assert found["stop_reason"] == "all 4 steps done"
        assert set(found["before"]) == {"loss", "accuracy", "macro_f1"}
        assert set(found["after"]) == {"step", "loss", "accuracy", "macro_f1"}
        assert Path(found["values"]).is_file()

    def test_more_steps_and_other_settings_on_resume(self, bundle, rows, run):
        common = ["tune", bundle, run, "--train", rows, "--data", rows]
        assert good(*common, "--steps", 9)["steps"] == 9
        refused = "lr=0.01, not 0.5; give the same, or allow changes (--allow-changes)"
        assert refused in bad(7, *common, "--lr", 0.5)
        for option, other in (("--seed", 1), ("--eps", 0.5), ("--schedule", "linear"),
                              ("--eval-every", 3), ("--batch-size", 2)):  # fmt: skip
            assert "(--allow-changes)" in bad(7, *common, option, other)
        assert "(--allow-changes)" in bad(7, *common[:5])  # no held-out rows
        assert good(*common, "--lr", 0.5, "--steps", 10, "--allow-changes")["steps"] == 10

    def test_people_see_text(self, bundle, rows, tmp_path, engine):
        asked = ["tune", bundle, tmp_path / "run", "--train", rows, "--steps", 2]
        result = call(*asked, "--estimator", "two-point")
        assert result.exit_code == 0, result.output
        assert "all 2 steps done" in result.stdout
        assert "no held-out rows" in result.stderr
        assert "loss noise" in result.stderr

    def test_people_see_every_evaluation_once(self, bundle, rows, tmp_path, engine):
        common = ["tune", bundle, tmp_path / "run", "--train", rows, "--data", rows]
        first = call(*common, "--steps", 5, "--eval-every", 2, "--forwards", 6)
        seen = [line for line in first.stderr.splitlines() if "held-out loss" in line]
        assert [line.split(":")[0] for line in seen] == ["step 0", "step 2", "step 3"]
        second = call(*common)
        seen = [line for line in second.stderr.splitlines() if "held-out loss" in line]
        assert "resuming at step 3" in second.stderr
        assert [line.split(":")[0] for line in seen] == ["step 4", "step 5"]

    def test_a_signal_leaves_a_run_to_resume_and_its_own_exit_code(
        self, bundle, rows, tmp_path, engine, monkeypatch
    ):
        class Interrupting(ValueEngine):
            calls = 0

            def score(self, *arguments, **how):
                Interrupting.calls += 1
                if Interrupting.calls == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().score(*arguments, **how)

        monkeypatch.setattr(engines, "open_engine", lambda *_, **__: Interrupting(), raising=False)
        result = call("tune", bundle, tmp_path / "run", "--train", rows, "--steps", 50,
                      "--eps", 0.01, "--json")  # fmt: skip
        assert result.exit_code == 143, result.output
        found = json.loads(result.stdout)
        assert found["stop_reason"] == "SIGTERM"
        assert 0 < found["steps"] < 50


class TestEvaluateAndPredict:
    def test_untuned_run_and_values_file(self, tmp_path, bundle, rows, run):
        plain = good("evaluate", bundle, "--data", rows)
        assert plain["examples"] == 24
        assert plain["values"] == "the bundle, untuned"
        shown = good("journal", "show", run)
        assert plain["loss"] == pytest.approx(shown["evaluations"][0][1], rel=1e-6)
        exported = good("journal", "export", run, bundle, tmp_path / "v.safetensors", "--step", 6)
        assert exported["step"] == 6
        tuned = good("evaluate", bundle, "--data", rows, "--values", tmp_path / "v.safetensors")
        # The file is float16, the journal's last evaluation float32.
        assert tuned["loss"] == pytest.approx(shown["evaluations"][-1][1], rel=1e-3)
        assert tuned["loss"] != plain["loss"]

    def test_one_file_bundles(self, tmp_path, bundle, rows, engine, monkeypatch):
        monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
        packed = good("pack", bundle, tmp_path / "b.seedtune")
        assert packed["bytes"] == (tmp_path / "b.seedtune").stat().st_size
        one = good("evaluate", tmp_path / "b.seedtune", "--data", rows)
        assert one["loss"] == good("evaluate", bundle, "--data", rows)["loss"]

    def test_predict_rows_and_text(self, bundle, rows, engine):
        answers = good("predict", bundle, "--data", rows)["predictions"]
        assert len(answers) == 24
        assert {answer["answer"] for answer in answers} <= {"0", "1"}
        assert sum(answers[0]["scores"].values()) == pytest.approx(1)
        text = json.loads(rows.read_text().splitlines()[3])["text"]
        assert good("predict", bundle, "--text", text)["predictions"] == [answers[3]]
        lines = call("predict", bundle, "--data", rows).stdout.splitlines()
        assert [json.loads(line) for line in lines] == answers


class TestReadout:
    @pytest.fixture
    def rows(self, tmp_path):
        lines = [
            json.dumps({"text": f"{n} films, all {['bad', 'good'][n % 2]}", "label": n % 2})
            for n in range(24)
        ]
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(lines))
        return file

    @pytest.fixture
    def learned(self, tmp_path, rows, monkeypatch):
        """A bundle whose program returns hidden states, and beside it a run on it: ``run``."""
        monkeypatch.setattr(engines, "open_engine", lambda *_, **__: HiddenEngine())
        bundle = write_tiny_bundle(tmp_path / "hidden", hidden_blocks=[1]).path
        good("tune", bundle, tmp_path / "run", "--train", rows, "--data", rows, "--batch-size", 4,
             "--eval-every", 1)  # fmt: skip
        return bundle

    def test_rows_are_judged_by_one_forward_before_and_after_where_there_is_room(
        self, tmp_path, learned, rows, monkeypatch
    ):
        """And as well where there is none: a run that went to its end is always judged."""
        calls = 0

        class Counting(HiddenEngine):
            def score(self, *arguments, **how):
                nonlocal calls
                calls += 1
                return super().score(*arguments, **how)

        monkeypatch.setattr(engines, "open_engine", lambda *_, **__: Counting())
        told, counts = [], []
        for name, needed in (("kept", 0), ("full", 1 << 60)):
            monkeypatch.setattr(known_forwards, "known_bytes", lambda *_, needed=needed: needed)
            calls = 0
            found = good(
                "tune", learned, tmp_path / name, "--train", rows, "--data", rows,
                "--batch-size", 4, "--eval-every", 1,
            )  # fmt: skip
            told.append({part: found[part] for part in ("before", "after", "judged_rows")})
            counts.append(calls)
        assert told[0] == told[1] and told[0]["judged_rows"] == 12
        assert counts[0] < counts[1]

    def test_values_of_another_task_are_refused(self, tmp_path, learned, rows):
        three = TASK | {"verbalisers": {"1": " great", "0": " terrible", "2": " so"}}
        task = tmp_path / "task.json"
        task.write_text(json.dumps(three))
        asked = ["evaluate", learned, "--data", rows, "--task", task]
        assert "was tuned for another task" in bad(7, *asked, "--run", tmp_path / "run")
        values = tmp_path / "run" / "values.safetensors"
        refused = "the answer head is for '0', '1', this task for '0', '1', '2'"
        assert refused in bad(7, *asked, "--values", values)

    def test_a_run_knows_its_task(self, tmp_path, learned, rows):
        """With as many labels as another the values would fit, and the answers be wrong."""
        other = TASK | {"verbalisers": {"no": " terrible", "yes": " great"}}
        task = tmp_path / "task.json"
        task.write_text(json.dumps(other))
        run = tmp_path / "run-other"
        theirs = tmp_path / "other.jsonl"
        words = {"0": "no", "1": "yes"}
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        theirs.write_text(
            "".join(json.dumps(row | {"label": words[str(row["label"])]}) + "\n" for row in lines)
        )
        tune = ["tune", learned, run, "--train", theirs, "--batch-size", 4]
        good(*tune, "--task", task)
        told = good("predict", learned, "--run", run, "--text", "the plot was good")
        assert told["predictions"][0]["answer"] in ("no", "yes")
        assert good(*tune)["steps"] > 0  # resumed: the run's task, not the bundle's
        (tmp_path / "third.json").write_text(json.dumps(other | {"template": "{text} So"}))
        asked = ["predict", learned, "--text", "the", "--run", run, "--task"]
        assert "was tuned for another task" in bad(7, *asked, tmp_path / "third.json")
        assert "the run has the task {" in bad(7, *tune, "--task", tmp_path / "third.json")

    def test_settings_that_mean_nothing_to_it_are_not_shown(self, tmp_path, learned):
        for command in (["branch", tmp_path / "run", tmp_path / "b"], ["show", tmp_path / "run"]):
            words = call("journal", *command).stdout.replace("settings.", "").split()
            assert "readout" in words and "batch_size" in words
            assert not {"lr", "eps", "noise", "seeds"} & set(words)


class TestJournal:
    def test_show_and_verify(self, bundle, run):
        shown = good("journal", "show", run)
        assert (shown["steps"], shown["metric"], shown["settings"]["lr"]) == (6, "accuracy", 0.01)
        assert [item[0] for item in shown["evaluations"]] == [0, 2, 4, 6]
        verified = good("journal", "verify", run, bundle)
        assert (verified["steps"], verified["skipped"], verified["hashes_checked"]) == (6, 0, 1)
        assert verified["torn_bytes"] == 0
        assert verified["bytes"] == (run / "journal.bin").stat().st_size
        earlier = good("journal", "verify", run, bundle, "--step", 3)
        assert earlier["steps"] == 3
        assert earlier["sha256"] != verified["sha256"]

    def test_a_note_from_elsewhere_moves_no_cursor(self, run):
        writer, _ = JournalWriter.open(run)
        writer.append(Note("\x1b[2Jall is well"))
        writer.append(End(bytes(16), "\x9b31mdone"))
        writer.close()
        for options in ([], ["--json"]):
            printed = call("journal", "show", run, *options).stdout
            assert "[2Jall is well" in printed and "31mdone" in printed
            assert all(line.isprintable() for line in printed.splitlines())

    def test_branch_and_rewind(self, tmp_path, bundle, run):
        assert good("journal", "branch", run, tmp_path / "b", "--step", 4)["steps"] == 4
        assert good("journal", "rewind", run, 4)["steps"] == 4
        both = [good("journal", "verify", each, bundle) for each in (run, tmp_path / "b")]
        assert both[0]["sha256"] == both[1]["sha256"]

    @pytest.mark.parametrize("operation", ["branch", "rewind", "compact"])
    def test_operations_say_little_to_people(self, tmp_path, bundle, run, operation):
        more = {"branch": [tmp_path / "b"], "rewind": [4], "compact": [bundle]}[operation]
        result = call("journal", operation, run, *more)
        assert result.exit_code == 0 and len(result.stdout.splitlines()) <= 10, result.stdout
        assert "lr 0.01" in result.stdout and "estimator two-point" in result.stdout
        assert "loss_jump" not in result.stdout

    def test_compact(self, bundle, rows, run):
        good("tune", bundle, run, "--train", rows, "--data", rows, "--steps", 80)
        before = good("journal", "verify", run, bundle)
        assert good("journal", "compact", run, bundle)["first_step"] == 16
        after = good("journal", "verify", run, bundle)
        assert (after["sha256"], after["best_sha256"]) == (before["sha256"], before["best_sha256"])


class TestBench:
    def test_names(self, monkeypatch):
        from seedtune.host_tools.bench import guessing

        assert "guessing" in good("bench", "list")["benchmarks"]
        monkeypatch.setattr(guessing, "bench_guessing", lambda: {"measured": True})
        assert good("bench", "guessing") == {"measured": True}
        result = call("bench", "speed")
        assert result.exit_code == 2
        assert "unknown benchmark 'speed'" in result.stderr
        result = call("bench", "guessing", "--output", "x")
        assert result.exit_code == 2
        assert "guessing takes no --output" in result.stderr

    def test_without_a_checkout(self, monkeypatch):
        monkeypatch.delattr(host_tools, "bench", raising=False)
        monkeypatch.setitem(sys.modules, "seedtune.host_tools.bench", None)
        assert "run this in a checkout of seedtune" in bad(1, "bench", "list")


class TestInstall:
    def test_version(self):
        shown = dict(line.split(maxsplit=1) for line in call("--version").stdout.splitlines())
        assert shown["seedtune"] == version("seedtune")
        assert shown["torch"] == version("torch")
        assert set(shown) == {"seedtune", "torch", "executorch", "onnxruntime"}

    @pytest.mark.parametrize(
        ("command", "package"),
        [
            (["profile", "MODEL", "p.safetensors"], "torch"),
            (["export", "MODEL", "b"], "torch"),
            (["quickstart", "--folder", "q"], "pyarrow"),
            (["tune", "BUNDLE", "r", "--task", "sst2"], "pyarrow"),
        ],
    )
    def test_a_device_says_what_is_missing(self, tmp_path, bundle, monkeypatch, command, package):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(datasets, "fetch", lambda name: name)
        monkeypatch.setitem(sys.modules, package, None)
        named = {"MODEL": tmp_path / "model", "BUNDLE": bundle}
        assert bad(1, *(named.get(part, part) for part in command)) == (
            f"this needs {package}, which is not installed here; "
            "it comes with: pip install 'seedtune[host]'"
        )


class TestInspect:
    def test_bundle(self, bundle):
        found = good("inspect", bundle)
        assert found["mask"]["entries"] == 12
        assert found["bounds"]["length"] == 32
        assert [layer["count"] for layer in found["layers"]] == [5, 0, 7]
        shown = call("inspect", bundle).stdout
        assert found["sha256"] in shown
        assert "3, 2 of them with sensitive values" in shown


@pytest.mark.parametrize("command", ["inspect", "tune", "evaluate", "predict"])
def test_who_waits_for_the_check_of_a_bundle_hears_of_it(
    command, tmp_path, bundle, rows, engine, monkeypatch
):
    told: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def checking(output):
        yield lambda done, total: told.append((done, total))

    monkeypatch.setattr(Output, "checking", checking)
    options = {
        "inspect": [],
        "tune": [tmp_path / "run", "--train", rows, "--steps", 1, "--eps", 0.01],
    }
    good(command, bundle, *options.get(command, ["--data", rows]))
    size = sum(each.stat().st_size for each in bundle.iterdir() if each.suffix != ".json")
    size += (bundle / "tokenizer.json").stat().st_size
    assert told[0] == (0, size) and told[-1] == (size, size)


class TestBadInput:
    """That it is one line with its exit code: what is refused, the runtime's own tests say."""

    def test_damaged_bundle(self, bundle, rows):
        data = bytearray((bundle / "program.pte").read_bytes())
        data[7] ^= 1
        (bundle / "program.pte").write_bytes(data)
        for arguments in (
            ["inspect", bundle],
            ["evaluate", bundle, "--data", rows],
            ["pack", bundle, bundle.parent / "x.seedtune"],
        ):
            assert "program.pte" in bad(4, *arguments)

    def test_unusable_rows(self, tmp_path, bundle, rows, engine):
        rows.write_text('{"text": "a", "label": "9"}')
        message = "rows.jsonl:1: unknown label '9'; known labels: 0, 1"
        assert message in bad(3, "evaluate", bundle, "--data", rows)
        assert message in bad(3, "tune", bundle, tmp_path / "run", "--train", rows)
        assert not (tmp_path / "run").exists()

    def test_missing_data_task_and_values(self, tmp_path, bundle, rows, engine):
        assert "--data" in bad(3, "evaluate", bundle)
        assert "--train" in bad(3, "tune", bundle, tmp_path / "run")
        assert "--text" in bad(3, "predict", bundle)
        assert "unknown task 'sst3'" in bad(3, "evaluate", bundle, "--task", "sst3")
        assert "t.json" in bad(3, "evaluate", bundle, "--task", tmp_path / "t.json")
        plain = write_tiny_bundle(tmp_path / "plain", task=None).path
        assert "has no task" in bad(3, "evaluate", plain, "--data", rows)
        bad(4, "evaluate", bundle, "--data", rows, "--values", tmp_path / "v.safetensors")
        bad(5, "evaluate", bundle, "--data", rows, "--run", tmp_path / "no-run")

    def test_settings(self, tmp_path, bundle, rows, engine):
        common = ["tune", bundle, tmp_path / "run", "--train", rows]
        assert "eps='wide'" in bad(7, *common, "--eps", "wide")
        assert "lr=-1.0" in bad(7, *common, "--lr", -1)
        assert not (tmp_path / "run").exists()

    def test_memory_limit(self, tmp_path, bundle, rows, engine):
        common = ["tune", bundle, tmp_path / "run", "--train", rows, "--steps", 1, "--eps", 0.01]
        common += ["--batch-size", 2]
        assert "'much' must be a size such as" in bad(7, *common, "--memory-limit", "much")
        said = bad(7, *common, "--memory-limit", "1.5 MB")
        assert "the limit is 2 MB: raise the memory limit (--memory-limit " in said
        assert not (tmp_path / "run").exists()
        assert good(*common, "--memory-limit", "20GB")["steps"] == 1

    def test_another_bundle_than_its_hash(self, tmp_path, bundle, rows, run):
        other = write_tiny_bundle(tmp_path / "other", program=b"other").sha256
        for command in (["tune", bundle, run, "--train", rows, "--data", rows],
                        ["evaluate", bundle, "--data", rows],
                        ["predict", bundle, "--text", "dull"]):  # fmt: skip
            assert f"not {other} (--sha256)" in bad(4, *command, "--sha256", other)
            good(*command, "--sha256", good("inspect", bundle)["sha256"])

    def test_another_bundles_journal(self, tmp_path, run, rows):
        other = write_tiny_bundle(tmp_path / "other", program=b"other").path
        assert "belongs to bundle" in bad(5, "journal", "verify", run, other)
        assert "belongs to bundle" in bad(5, "tune", other, run, "--train", rows)

    def test_a_damaged_journal(self, bundle, run):
        file = run / "journal.bin"
        data = bytearray(file.read_bytes())
        third = [placed.end for placed in read_journal(run).records if placed.is_step][2]
        data[third - 4] ^= 1
        file.write_bytes(data)
        said = bad(5, "journal", "verify", run, bundle)
        assert "'seedtune journal rewind RUN --to-last-good'" in said
        shown = call("journal", "show", run, "--json")
        found = json.loads(shown.stdout)
        assert found["damage"]["last_good_step"] == found["steps"] == 2
        assert f"damaged at byte {found['damage']['byte']}" in " ".join(shown.stderr.split())
        assert "one of them" in bad(5, "journal", "rewind", run)
        assert "one of them" in bad(5, "journal", "rewind", run, 1, "--to-last-good")
        mended = good("journal", "rewind", run, "--to-last-good")
        assert (mended["steps"], mended["damage"]) == (found["steps"], None)
        assert good("journal", "verify", run, bundle)["steps"] == found["steps"]

    def test_a_run_folder_that_is_a_file(self, bundle, rows, engine):
        assert str(rows) in bad(5, "tune", bundle, rows, "--train", rows, "--eps", 0.01)

    def test_unknown_names(self, tmp_path):
        assert "unknown resource 'x'" in bad(9, "fetch", "x")
        assert "nowhere" in bad(8, "profile", tmp_path / "nowhere", tmp_path / "p.safetensors")
        bad(1, "profile", tmp_path, tmp_path / "no" / "p.safetensors")
        assert call("journal", "nonsense").exit_code == 2
        assert call("tune").exit_code == 2


@pytest.fixture(scope="module")
def started():
    """Modules that ``seedtune --help`` loads."""
    script = (
        "import sys, json\nfrom seedtune.host_tools.cli import main\n"
        "sys.argv = ['seedtune', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "quickstart" in done.stdout
    yield set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("library", ["torch", "transformers", "numpy", "tokenizers"])
def test_help_loads_nothing_heavy(started, library):
    assert library not in started


def test_every_command_has_help_and_json():
    import typer.main

    found = typer.main.get_command(app)
    commands = dict(found.commands)
    commands |= {f"journal {n}": c for n, c in commands.pop("journal").commands.items()}
    issue = {"fetch", "profile", "export", "inspect", "estimate", "tune", "evaluate", "predict",
             "quickstart", "bench"}  # fmt: skip
    journal = ["show", "verify", "rewind", "branch", "export", "compact", "share"]
    assert issue | {f"journal {name}" for name in journal} <= set(commands)
    for name, command in commands.items():
        assert command.help, name
        answers = any("--json" in option.opts for option in command.params)
        # One is a conversation in a terminal, the other answers over HTTP.
        assert answers or name in ("chat", "serve"), name
