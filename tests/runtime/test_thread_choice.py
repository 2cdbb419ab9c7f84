"""The thread count is the fastest one, measured once and remembered."""

import subprocess
import sys

import pytest
from compiler import needs_compiler
from hypothesis import given
from hypothesis import strategies as st
from seedtune.runtime.engines import threads as thread_choice
from seedtune.runtime.engines.threads import WORTH, choose_threads, fastest


@given(st.dictionaries(st.integers(1, 64), st.floats(0.001, 10), min_size=1))
def test_no_count_is_much_faster_than_the_chosen(seconds):
    chosen = fastest(seconds)
    assert min(seconds.values()) >= WORTH * seconds[chosen]
    assert all(seconds[count] > seconds[chosen] for count in seconds if count < chosen)


def test_measured_once(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(thread_choice, "default_cache", lambda: tmp_path)
    monkeypatch.setattr(thread_choice.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    times = {1: 3.0, 2: 1.0, 3: 2.0}
    asked = []

    def measured(*request):
        asked.append(request[1])
        return times[request[1]]

    def choose(name):
        return choose_threads(bundle, name, lambda count: count, None)

    monkeypatch.setattr(thread_choice, "_pass_seconds", measured)
    assert choose("a") == choose("a") == 2
    assert asked == [1, 2, 3]
    (file,) = (tmp_path / "threads").iterdir()
    file.write_text('{"threads": 9}')
    assert choose("a") == 2
    assert asked == [1, 2, 3] * 2
    assert choose("b") == 2 and asked == [1, 2, 3] * 3  # another engine may want another count


@needs_compiler
@pytest.mark.parametrize(
    "case",
    [
        # Nothing fits: it is left at one, and measured another time.
        "assert choose(1) == 1; assert not (cache / 'threads').exists()",
        "assert open_engine(bundle).threads == choose(); assert (cache / 'threads').exists()",
        # The pool stays as it is while a program is open, and is free when it is closed.
        """with open_engine(bundle, 3):
    assert not module.can_change_threads() and open_engine(bundle).threads == 3
assert choose() in (1, 2)""",
    ],
    ids=["nothing fits", "opens", "beside another"],
)
def test_on_a_real_program(case, bundle, tmp_path):
    """In a process of its own: no other program may be open."""
    command = [sys.executable, "-c", _SETUP + case, str(bundle.path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_SETUP = """
import os, sys
from functools import partial
from pathlib import Path
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import engines_of, open_engine, threads
bundle, cache = open_bundle(sys.argv[1]), Path(sys.argv[2])
threads.default_cache = lambda: cache
os.sched_getaffinity = lambda pid: {0, 1}
(name, module, program), *_ = engines_of(bundle)
def choose(limit=None):
    opened = partial(module.open, bundle, program, memory_limit=limit)
    return threads.choose_threads(bundle, name, opened, limit)
"""
