"""The engine over ExecuTorch's Android classes, on a JVM, against the native engine."""

import getpass
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import smollm2
from compiler import needs_compiler
from jvm_scripts import command, environment
from seedtune.runtime.bundle.manifest import VERSION
from seedtune.runtime.engines import engine_module, open_engine
from seedtune.runtime.errors import EngineError
from seedtune.runtime.files import default_cache
from traced import needs_strace, traced


class TestWithoutJava:
    def test_says_what_it_needs_in_one_line(self, bundle):
        module = engine_module("executorch-java")
        assert not module.can_change_threads()
        with pytest.raises(EngineError) as told:
            open_engine(bundle, name="executorch-java")
        assert "no bridge to Java (module java, Chaquopy's); it runs inside an Android app" in str(
            told.value
        )
        assert "\n" not in str(told.value)

    def test_an_app_without_executorch(self, bundle, monkeypatch):
        class Throwable(Exception):
            pass

        def jclass(name):
            if name == "java.lang.Throwable":
                return Throwable
            raise Throwable(f"java.lang.ClassNotFoundException: {name}\n\tat somewhere")

        bridge: Any = types.ModuleType("java")
        bridge.jclass = jclass
        bridge.__spec__ = types.SimpleNamespace(name="java")
        monkeypatch.setitem(sys.modules, "java", bridge)
        with pytest.raises(EngineError) as told:
            open_engine(bundle, name="executorch-java")
        assert "add org.pytorch:executorch-android to its dependencies" in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.android
@needs_compiler
class TestOnAJvm:
    @pytest.fixture(scope="class")
    def java(self, on_jvm, bundle, tmp_path_factory):
        folder = tmp_path_factory.mktemp("java")
        return on_jvm("engine_run.py", "executorch-java", bundle.path, folder)

    @pytest.fixture(scope="class")
    def native(self, on_jvm, bundle, tmp_path_factory):
        folder = tmp_path_factory.mktemp("native")
        return on_jvm("engine_run.py", "executorch-native", bundle.path, folder)

    @needs_strace
    def test_it_opens_no_socket_and_writes_nothing_elsewhere(self, on_jvm, bundle, tmp_path):
        ran = command("engine_run.py", "executorch-java", bundle.path, tmp_path)
        found = traced(ran, tmp_path, {**environment(), "PYTHONDONTWRITEBYTECODE": "1"})
        assert found.sockets == []
        own = (tmp_path, default_cache(), Path(f"/tmp/hsperfdata_{getpass.getuser()}"))
        assert found.outside(*own) == []

    def test_the_bundle_is_of_the_newest_format_with_all_that_a_program_can_have(self, bundle):
        assert bundle.manifest["version"] == VERSION
        assert bundle.adapter_shape is not None and bundle.hidden_width
        assert bundle.program("executorch").generation is not None
        assert bundle.bounds.prefix

    def test_scores_equal_the_native_engines_to_the_bit(self, java, native):
        assert java["scores"] == native["scores"]
        assert len({part for parts in java["scores"] for part in parts}) == 6

    def test_rows_behind_a_prefix_score_alike(self, java, native):
        assert java["behind"] == native["behind"]
        assert len({part for parts in java["behind"] + java["scores"] for part in parts}) == 12

    def test_an_adapter_moves_them_alike(self, java, native):
        assert java["adapter"] == native["adapter"]
        assert java["adapter"][1] == java["scores"][0][0] != java["adapter"][0]

    def test_it_writes_what_the_native_engine_writes(self, java, native):
        assert java["written"] == native["written"]
        assert len(set(java["written"])) == 3

    def test_journals_and_values_equal_the_native_engines(self, java, native):
        assert java["runs"] == native["runs"]
        assert len(java["runs"]) == 4
        assert len({run[0] for run in java["runs"].values()}) == 4

    def test_calls_from_many_threads_wait_for_each_other(self, java):
        assert java["same_together"]

    def test_closing_waits_for_what_other_threads_do(self, on_jvm, bundle):
        found = on_jvm("../close_race.py", "executorch-java", bundle.path)
        (told,) = found["told"]
        assert told.endswith("program.pte: the program is closed")
        assert found["scored"] >= 6 and found["written"]

    def test_errors_are_one_line_and_leave_the_engine_whole(self, java, bundle):
        program = str(bundle.path / "program.pte")
        wanted = {
            "entries": "the program takes",
            "threads": "a program is open with 1 threads; close it before opening one with 2",
            "closed": f"{program}: the program is closed",
            "hidden": f"{program}: returns ",
            "tokens": f"{program}: the program failed: ",
            "damaged": "damaged.pte: the program cannot be loaded: ",
            "empty": "empty.pte: the program cannot be loaded: ",
        }
        errors = java["errors"]
        assert errors.keys() == wanted.keys()
        for what, text in wanted.items():
            assert text in errors[what], errors[what]
            assert "\n" not in errors[what] and len(errors[what]) < 600
        assert java["still"]


@pytest.mark.android
@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
def test_smollm2_equals_the_native_engine(on_jvm, exports, tmp_path):
    path = smollm2.first_blocks(exports).path
    native = on_jvm("engine_run.py", "executorch-native", path, tmp_path / "native")
    java = on_jvm("engine_run.py", "executorch-java", path, tmp_path / "java")
    for what in ("scores", "adapter", "written", "runs"):
        assert java[what] == native[what], what
    assert len(java["runs"]) == 4
