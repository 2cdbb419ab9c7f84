"""Engines are found by name and format, in order; adding one takes a module and a line."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy_engine
from command_line import bad, good, write_rows
from compiler import needs_compiler
from faults import run_and_kill
from seedtune.runtime import engines
from seedtune.runtime.engines import ENGINES, engine_module, open_engine
from seedtune.runtime.engines.contract import EngineUnavailable
from seedtune.runtime.errors import BundleError, EngineError
from tiny_bundle import PROGRAM, bundle_parts, write_tiny_bundle
from toy_engine import ToyEngine


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A bundle with a toy program beside its first, and the toy engine registered."""
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ENGINES, "toy", "toy_engine")
    files = bundle_parts()["files"] | toy_engine.FILES
    programs = [PROGRAM, toy_engine.PROGRAM]
    return write_tiny_bundle(tmp_path / "b", programs=programs, files=files, hidden_blocks=[1])


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_what_a_module_of_one_has(name):
    module = engine_module(name)
    assert module.FORMAT and module.PROCESS_BYTES > 0
    assert module.unavailable() is None or "\n" not in str(module.unavailable())
    assert callable(module.can_change_threads) and callable(module.open)


class TestToy:
    @pytest.mark.parametrize(
        "options",
        [
            ["--estimator", "two-point", "--lr", "1e-2", "--eps", "1e-2", "--steps", "12"],
            ["--estimator", "readout", "--steps", "6"],
        ],
        ids=["two-point", "readout"],
    )
    def test_it_tunes_is_killed_resumes_shares_and_predicts(self, toy, rows, tmp_path, options):
        given = ["--train", rows, "--data", rows, "--engine", "toy", "--batch-size", 4, *options]
        whole = good("tune", toy.path, tmp_path / "whole", *given)
        assert whole["after"]["loss"] < whole["before"]["loss"]
        part = good("tune", toy.path, tmp_path / "run", *given, "--forwards", 3)
        assert 0 < part["steps"] < whole["steps"]
        run_and_kill(lambda: good("tune", toy.path, tmp_path / "run", *given), 0.2)
        resumed = good("tune", toy.path, tmp_path / "run", *given)
        assert resumed["values_sha256"] == whole["values_sha256"]
        verified = good("journal", "verify", tmp_path / "run", toy.path)
        assert verified["steps"] == whole["steps"]
        if "two-point" in options:
            shared = tmp_path / "run.share"
            good("journal", "share", tmp_path / "run", toy.path, shared)
            received = good("journal", "receive", shared, toy.path, tmp_path / "other")
            assert received["steps"] == whole["steps"]
        asked = [toy.path, "--data", rows, "--run", tmp_path / "run", "--engine", "toy"]
        assert good("evaluate", *asked)["loss"] == pytest.approx(whole["after"]["loss"])
        assert len(good("predict", *asked)["predictions"]) == 24
        assert ToyEngine.live == 0  # every command closes what it opened

    def test_its_threads_are_measured(self, toy, tmp_path):
        with open_engine(toy, name="toy") as engine:
            assert isinstance(engine, ToyEngine) and engine.threads is not None
            (file,) = (tmp_path / "cache" / "threads").iterdir()
            assert "-toy-" in file.name
            assert json.loads(file.read_text())["threads"] == engine.threads
        with open_engine(toy, 3, name="toy") as engine:
            assert isinstance(engine, ToyEngine) and engine.threads == 3
        with pytest.raises(EngineError, match="closed"):
            engine.score(None, None)

    def test_inspect_shows_programs_and_engines(self, toy, monkeypatch):
        for name in ENGINES:
            reason = {"toy": None}.get(name, f"no {name}")
            monkeypatch.setattr(engine_module(name), "unavailable", lambda reason=reason: reason)
        found = good("inspect", toy.path)
        assert [program["format"] for program in found["programs"]] == ["executorch", "toy"]
        assert found["programs"][1]["files"] == ["toy.json"]
        assert found["bounds"]["length"] == 32 and found["hidden_width"] == 8
        assert found["engines"] == {
            "executorch-native": "not here: no executorch-native",
            "executorch-binding": "not here: no executorch-binding",
            "executorch-java": "not here: no executorch-java",
            "toy": "runs the toy program",
        }
        monkeypatch.setattr(engine_module("executorch-binding"), "unavailable", lambda: None)
        told = good("inspect", toy.path)["engines"]
        assert told["executorch-binding"] == "runs the executorch program"
        assert told["toy"] == "could run the toy program"

    def test_an_altered_program_is_noticed(self, toy):
        (toy.path / "toy.json").write_bytes(b'{"slope": 0.6}')
        with pytest.raises(BundleError, match=r"toy.json: altered"):
            open_engine(toy, name="toy")

    def test_other_formats_and_names_are_refused(self, toy, rows, tmp_path):
        told = bad(6, "evaluate", toy.path, "--data", rows, "--engine", "tpu")
        assert told == (
            "engine 'tpu' is unknown; engines: executorch-native, executorch-binding, "
            "executorch-java, onnxruntime, torch-int4, toy"
        )
        plain = write_tiny_bundle(tmp_path / "plain").path
        told = bad(6, "evaluate", plain, "--data", rows, "--engine", "toy")
        assert "has programs for executorch, none that toy runs; export one" in told
        foreign = replace(toy, programs=(replace(PROGRAM, format="coreml"),))
        with pytest.raises(EngineError, match="for coreml, none that an engine of this seedtune"):
            open_engine(foreign)


class TestOrder:
    @pytest.fixture
    def lacking(self, monkeypatch, toy):
        """Engines that this machine lacks; the others open."""
        lacks: set[str] = set()

        def module_of(name):
            def opened(*arguments):
                if name in lacks:
                    raise EngineUnavailable(f"needs {name}'s library; pip install it")
                return SimpleNamespace(name=name, arguments=arguments)

            return SimpleNamespace(
                FORMAT=toy_engine.FORMAT if name == "c" else PROGRAM.format,
                can_change_threads=lambda: False,
                open=opened,
            )

        modules = {name: module_of(name) for name in "abc"}
        monkeypatch.setattr(engines, "ENGINES", {name: name for name in "abc"})
        monkeypatch.setattr(engines, "engine_module", modules.__getitem__)
        return lacks

    def test_the_first_that_works_is_taken(self, toy, lacking):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first: Any = open_engine(toy, 2, memory_limit=9)
        assert first.name == "a" and first.arguments == (toy, PROGRAM, 2, 9)
        lacking.add("a")
        with pytest.warns(UserWarning) as told:
            second: Any = open_engine(toy)
        assert second.name == "b" and second.arguments == (toy, PROGRAM, None, None)
        assert [str(each.message) for each in told] == [
            "falling back on b (a: needs a's library; pip install it)"
        ]
        lacking.add("b")
        with pytest.warns(UserWarning, match=r"falling back on c \(a: .*; b: needs b's"):
            third: Any = open_engine(toy)
        assert third.arguments[1] == toy_engine.PROGRAM

    def test_where_none_works_each_says_why(self, toy, lacking):
        lacking.update("abc")
        with pytest.raises(EngineError, match=r"a: needs a's .*; b: needs b's .*; c: needs c's"):
            open_engine(toy)

    def test_a_name_forces_one(self, toy, lacking):
        chosen: Any = open_engine(toy, name="b")
        assert chosen.name == "b"
        lacking.add("b")
        with pytest.raises(EngineError, match=r"no engine runs .* here: b: needs b's library"):
            open_engine(toy, name="b")

    def test_a_program_that_is_refused_is_no_reason_to_try_another(self, toy, lacking, monkeypatch):
        def refusing(*arguments):
            raise EngineError("program.pte: damaged")

        monkeypatch.setattr(engines.engine_module("a"), "open", refusing)
        with pytest.raises(EngineError, match="damaged"):
            open_engine(toy)


@needs_compiler
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "executorch-java"])
def test_closing_waits_for_what_other_threads_do(reach, name):
    """``tests/android_demo`` has the same of the engine that needs an app."""
    script = Path(__file__).parents[1] / "close_race.py"
    done = subprocess.run(
        [sys.executable, str(script), name, str(reach.path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
    found = json.loads(done.stdout.splitlines()[-1])
    (told,) = found["told"]
    assert told.endswith(": the program is closed")
    assert found["scored"] >= 6 and bool(found["written"]) == name.startswith("executorch")


@pytest.mark.parametrize("threads", [0, -1, 100_000, 10**30, True, 1.5, None, "2"])
def test_numbers_of_threads_that_no_engine_can_start(toy, threads):
    """Libraries that are asked for too many end the process."""
    with pytest.raises(EngineError, match=r"^threads is .*, must be 1 to \d+; this process has"):
        open_engine(toy, threads, name="toy")
    assert ToyEngine.live == 0


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "executorch-java"])
def test_many_threads_are_started_and_no_more(reach, name):
    script = (
        "import sys\n"
        "from seedtune.runtime.bundle import open_bundle\n"
        "from seedtune.runtime.engines import open_engine\n"
        "from seedtune.runtime.engines.threads import usable_cores\n"
        "bundle = open_bundle(sys.argv[2])\n"
        "most = max(64, 4 * usable_cores())\n"
        "open_engine(bundle, most, name=sys.argv[1]).close()\n"
        "try: open_engine(bundle, most + 1, name=sys.argv[1])\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, name, str(reach.path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("threads is ")
