"""What benchmarks run in a process of its own: its answer, what it says on the way, its errors."""

import json
import os
from pathlib import Path

import pytest
from seedtune.host_tools.bench.measuring.process import call_function, run_module
from seedtune.runtime.errors import SeedtuneError

MODULE = """
import json, sys
what, *rest = sys.argv[1:]
print("half way", file=sys.stderr)
if what == "fail":
    sys.exit("no room\\n")
print("a line before")
print("nothing" if what == "silent" else json.dumps({"what": what, "rest": rest}))
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "measured_child.py").write_text(MODULE)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    return "measured_child"


def test_a_module_answers_and_is_heard(child, capsys):
    found = run_module(child, "tune", Path("a b"), 3)
    assert found == {"what": "tune", "rest": ["a b", "3"]}
    assert capsys.readouterr() == ("", "half way\n")


def test_a_module_that_fails_says_why(child, capsys):
    wanted = "`python -m measured_child fail 3` ended with exit code 1: no room"
    with pytest.raises(SeedtuneError) as raised:
        run_module(child, "fail", 3)
    assert str(raised.value) == wanted
    assert "half way" in capsys.readouterr().err


def test_a_module_without_an_answer_is_named(child):
    with pytest.raises(SeedtuneError, match=r"child silent` printed no JSON object .* 'nothing'"):
        run_module(child, "silent")
    with pytest.raises(SeedtuneError, match=r"ended with exit code 1: .*No module named no_such"):
        run_module("no_such")


def test_a_function_runs_elsewhere():
    assert call_function(os.getpid) != os.getpid()
    with pytest.raises(json.JSONDecodeError):  # its own errors are its own
        call_function(json.loads, "{")


def test_a_process_that_ends_early_is_named():
    with pytest.raises(SeedtuneError, match=r"process of posix\._exit ended early"):
        call_function(os._exit, 3)
