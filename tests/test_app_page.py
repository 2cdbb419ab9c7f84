"""The app that docs/apps.md shows: progress, pause, battery, cancel, all from an event loop."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doc_pages import python_of
from seedtune.runtime import engines, open_model
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.state import history_of
from tiny_bundle import write_tiny_bundle
from value_engine import ValueEngine

STEPS = 200


@pytest.fixture
def app():
    """What the page defines."""
    code, *_ = python_of("docs/apps.md")
    names: dict[str, Any] = {"__name__": "app"}
    exec(code, names)
    return names


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    monkeypatch.chdir(tmp_path)
    words = ["the film", "great plot", "dull", "bad and dull", "good", "I left because"]
    for name, count in (("train", 40), ("held_out", 12)):
        rows = [{"text": f"{words[n % 6]} {words[n % 5]}", "label": n % 2} for n in range(count)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_model(write_tiny_bundle(tmp_path / "bundle").path) as opened:
        monkeypatch.setattr(opened, "tuner", settings_of(opened.tuner))
        yield opened


def settings_of(tuner):
    """A tuner of many short steps."""
    chosen = {"estimator": "two-point", "eps": 0.01, "lr": 0.01, "batch_size": 4, "steps": STEPS}
    return lambda *asked, **more: tuner(*asked, **more, **chosen)


def learning(app, model):
    return app["Learning"](model, "run", "train.jsonl", "held_out.jsonl")


def steps_done():
    return history_of(read_journal("run")).steps


async def until(so: Callable[[], bool]) -> None:
    for _ in range(2000):
        if so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_it_learns_and_tells(app, model):
    told: list[str] = []
    ended = asyncio.run(learning(app, model).learn(told.append))
    assert ended.startswith(f"all {STEPS} steps done; ")
    assert sum(line.startswith("step ") for line in told) == STEPS
    assert "evaluating: 12 of 12 rows" in told


def test_it_pauses_and_goes_on(app, model):
    async def use() -> None:
        told: list[str] = []
        run = learning(app, model)
        work = asyncio.create_task(run.learn(told.append))
        await until(lambda: len(told) > 5)
        run.control.pause()
        await asyncio.sleep(0.1)
        before = len(told)
        await asyncio.sleep(0.2)
        assert len(told) == before < STEPS and not work.done()
        run.control.proceed()
        assert (await work).startswith("all ")

    asyncio.run(use())


def test_cancelling_ends_it_after_its_step_and_the_same_call_resumes(app, model):
    async def use() -> None:
        told: list[str] = []
        work = asyncio.create_task(learning(app, model).learn(told.append))
        await until(lambda: len(told) > 5)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(use())
    done = steps_done()
    assert 0 < done < STEPS
    assert asyncio.run(learning(app, model).learn(lambda text: None)).startswith("all ")
    assert steps_done() == STEPS


def test_a_low_battery_ends_it(app, model):
    charge = iter([None] * 7 + ["battery below 20 %"])
    app["Learning"]._work.__globals__["low_battery"] = lambda: next(charge)
    ended = asyncio.run(learning(app, model).learn(lambda text: None))
    assert ended.startswith("battery below 20 %; ") and steps_done() == 7
    assert "step 7, the last, was not evaluated" in ended
