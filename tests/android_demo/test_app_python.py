"""The app's Python without a JVM: what it answers, by this machine's engine."""

import json
import os
import sys
import types

import pytest
from compiler import needs_compiler
from jvm_scripts import DEMO
from seedtune.runtime.bundle import pack_bundle

KINDS = {
    "work": ("the meeting is moved to {}", "send me the numbers of {}"),
    "family": ("mum calls at {}", "dinner at home, {}"),
    "Offers!": ("50 % off until {}", "win a prize on {} now"),
}
DAYS = ("Monday", "9", "the 1st of May, as I said before and say again", "noon", "", "today")
"""Texts are uneven, and the kinds' names in no order."""


@pytest.fixture
def seedtune_app(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO / "app/src/main/python"))
    monkeypatch.setenv("SEEDTUNE_CACHE", os.environ.get("SEEDTUNE_CACHE", ""))  # it sets its own
    yield
    for name in [each for each in sys.modules if each.split(".")[0] == "seedtune_app"]:
        del sys.modules[name]


@pytest.fixture
def app_of(seedtune_app, bundle, tmp_path):
    """``app_of(name, **settings)``: an app that has the model."""

    def make(name, **settings):
        from seedtune_app.app import App

        app = App(str(tmp_path / name), engine="executorch-native", **settings)
        archive = pack_bundle(bundle.path, tmp_path / f"{name}.seedtune")
        waiting = types.SimpleNamespace(checked=lambda done, total: None)
        good(app.take_bundle(str(archive), waiting))
        return app

    return make


def good(answer):
    found = json.loads(answer)
    assert "error" not in found, found
    return found["ok"]


@needs_compiler
@pytest.mark.parametrize(
    "order",
    [["work", "family", "Offers!"], ["family", "work", "Offers!"], ["Offers!", "work", "family"]],
    ids=" ".join,
)
def test_the_kind_of_a_message_whatever_the_order_of_kinds(app_of, order):
    app = app_of("app", batch_size=4, eval_every=2)
    good(app.name_labels(", ".join(order)))
    given = [
        (text.format(day), kind) for day in DAYS for kind, texts in KINDS.items() for text in texts
    ]
    assert good(app.add_messages("\n".join(text for text, _ in given))) == len(given)
    for place, (_, kind) in enumerate(given):
        good(app.tap(place, kind))
    heard = types.SimpleNamespace(
        stepped=lambda *report: None, evaluating=lambda *report: None, waiting=lambda reason: None
    )
    assert app.learn("sort", 1.0, heard).endswith("steps done")
    progress = good(app.progress("sort"))
    assert dict(progress["evaluations"])[progress["best"]] > 0.8
    for text, kind in given[: 2 * len(KINDS)]:
        answer = good(app.predict("sort", text))["after"]
        assert answer["answer"] == kind and 1 / 3 < answer["sure"] <= 1
