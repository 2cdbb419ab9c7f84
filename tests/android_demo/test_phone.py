"""The app's logic on a JVM: its Python and its Kotlin that knows no Android, on the real engine."""

import sys
import types

import pytest
from compiler import needs_compiler
from jvm_scripts import DEMO

pytestmark = [pytest.mark.android, needs_compiler]


@pytest.fixture(scope="module")
def live(on_jvm, bundle, tmp_path_factory):
    """``live("scenario", *arguments, folder=...)``: a life of the app's process."""

    def run(scenario, *arguments, folder=None, **how):
        root = folder or tmp_path_factory.mktemp(scenario) / "app"
        return on_jvm("phone_run.py", scenario, root, bundle.path, *arguments, **how)

    return run


class TestSorting:
    @pytest.fixture(scope="class")
    def found(self, live):
        return live("sort")

    def test_what_is_missing_is_said(self, found):
        assert found["empty"]["bundle"] is None
        assert found["too early"] == [
            "tap a kind for 8 messages or more, of two kinds at least; 0 have one",
            "choose a model file (.seedtune) first",
        ]
        labels = [each["label"] for each in found["messages"]["messages"]]
        assert len(labels) == 40 and labels.count(None) == 2
        assert found["messages"]["labels"] == ["Great", "Terrible"]
        assert len(found["ready"]["bundle"]["sha256"]) == 64

    def test_the_check_of_the_model_is_shown_to_its_end(self, found, bundle):
        """Packed and unpacked, by the runtime's own count, by way of the interface of Kotlin's."""
        parts = bundle.manifest["parts"]
        size = sum(part["bytes"] for part in parts.values())
        done = [each for each, _ in found["checked"]]
        assert {total for _, total in found["checked"]} == {2 * size}
        assert done == sorted(done) and len(set(done)) == 2 * len(parts) + 1
        assert done[0] == 0 and size in done and done[-1] == 2 * size

    def test_it_rests_for_each_reason_and_goes_on_when_none_is_left(self, found):
        texts = [report[0] for report in found["reports"]]
        assert "Resting: paused" in texts and "Resting: the phone is not charging" in texts
        assert found["still resting at"] == 2
        assert found["still said"] == ["Resting: the phone is not charging", 2, True, True]
        assert texts.count("Going on") == 1
        steps = [report[1] for report in found["reports"] if report[0].startswith("Step")]
        assert steps == [1, 2, 3, 4, 5, 6]
        assert found["reports"][-1] == ["all 6 steps done", 6, False, False]
        assert found["busy"] == ["it is learning; stop that first"] * 2

    def test_it_learned_and_shows_it(self, found):
        progress = found["progress"]
        assert progress["steps"] == 6
        assert [step for step, _ in progress["losses"]] == [1, 2, 3, 4, 5, 6]
        assert [step for step, _ in progress["evaluations"]] == [0, 2, 4, 6]
        before, after = progress["evaluations"][0][1], progress["evaluations"][-1][1]
        assert after > before + 0.3 and progress["fresh"] and progress["best"] > 0
        assert found["predicted"]["step"] == progress["best"]
        assert found["predicted"]["before"] != found["predicted"]["after"]

    def test_undo_to_any_step_and_forward_again(self, found):
        undone = found["undone progress"]
        assert undone["steps"] == 3 and undone["best"] == 2
        assert [step for step, _ in undone["evaluations"]] == [0, 2]
        assert found["too far"].endswith("step 5 cannot be reached; it ends at step 3")
        assert found["again"] == found["whole"] != found["undone"]

    def test_changed_examples_and_kinds_are_noticed(self, found):
        assert found["changed"] is False
        assert found["other task"] is None

    def test_wiping_leaves_nothing(self, found):
        assert found["left"] == []
        assert found["wiped"] == found["empty"]


def test_writing(live):
    found = live("write")
    assert found["line"] == "all 6 steps done"
    progress = found["progress"]
    assert 1 < progress["evaluations"][-1][1] < progress["evaluations"][0][1]
    predicted = found["predicted"]
    assert predicted["after"]["perplexity"] < predicted["before"]["perplexity"]
    assert predicted["after"]["written"] and "written" not in predicted["before"]
    assert found["again"] == found["hash"]
    assert found["stopped"] == ["stopped", False]
    before, more, again = found["more"]
    assert found["read"] == [100, 90 * 27] and before < more == again


def test_it_shows_what_it_remembers_and_forgets_it(live):
    found = live("forget")
    assert found["nothing"] == [[], "there is nothing to forget yet"]
    assert found["line"] == "all 6 steps done"
    first, rest = found["first"], found["rest"]
    assert len(first) > 2 and all(one["words"] > 3 and "told with" in one["text"] for one in first)
    gone = first[0]["text"]
    assert rest and all(one["text"] != gone for one in rest)
    before, after = found["rows"]
    assert 0 < after < before
    assert "no text that the run keeps words of holds 'nobody said this'" in found["unknown"]
    assert found["none"] == [[], []]


def test_a_killed_process_goes_on_to_the_same_values(live, tmp_path):
    """Of one kind; one of the other is killed in its pause, below."""
    assert live("begin", "write", folder=tmp_path / "app", killed=True) is None
    found = live("go_on", folder=tmp_path / "app")
    assert found["unfinished"] == [True, False]
    assert found["line"] == "all 6 steps done"
    assert found["first step"] == 4
    assert found["hashes"][0] == found["hashes"][1]
    assert found["nothing"] == "there was nothing to go on with"


def test_a_pause_outlives_the_process(live, tmp_path):
    live("begin", "sort", "paused", folder=tmp_path / "app", killed=True)
    assert live("go_on_paused", folder=tmp_path / "app") == {"steps": [3, 6]}


def test_what_dies_at_once_is_not_begun_for_ever(live, tmp_path):
    for _ in range(3):
        live("start_and_die", folder=tmp_path / "app", killed=True)
    assert live("after_deaths", folder=tmp_path / "app") == {
        "unfinished": False,
        "by itself": "there was nothing to go on with",
        "asked": "all 6 steps done",
        "left": False,
    }


def test_a_stop_before_it_is_ready_is_heard(live):
    assert live("stopped_early") == {
        "at once": ["stopped", 0, False],
        "resting": ["stopped", 0, False],
        "afterwards": "all 6 steps done",
    }


def test_accidents_give_one_line_and_lose_nothing(live):
    found = live("accidents")
    altered = "the file: truncated or altered archive"
    for what, line in {
        "altered": altered,
        "forged": "the file: values.safetensors is truncated or altered; copy it again",
        "cut": altered,
        "other": altered,
        "revoked at once": "the file may not be read any more: choose it again",
        "revoked": "the file may not be read any more: choose it again",
        "revoked text": "the file may not be read any more: choose it again",
        "gone": "the file cannot be read (nothing there)",
        "shorter": "the file cannot be read (ended after ",
        "too full": "the phone's storage is too full: free 1950 MB",
        "full": "the phone's storage is full: free some and go on; nothing is lost",
        "java": "the program failed: java.lang.IllegalStateException: Module has been destroyed",
        "bridge": "the bridge to Python failed: ",
        "busy": "it is learning; stop that first",
    }.items():
        assert line in found[what] and "\n" not in found[what], found[what]
    assert found["full wrote"] > 0
    assert found["waiting"] == ["None", False, "picked.seedtune"]
    assert found["after full at"] == found["after java at"] == 2
    assert found["whole"] == found["back"] == found["after full"] == found["after java"]
    assert found["active"] is False


def test_when_to_rest_and_where_points_stand(live):
    found = live("pure")
    saving = "battery saver is on"
    assert found["charging"] == ["the phone is not charging", None, saving]
    warm = "the phone is warm"
    assert found["heat"] == [None, warm, warm, None, None]
    assert found["battery"] == [None, warm, warm, None, None]
    assert found["free"] == [None]
    assert found["pixels"] == [10, 60, 60, 35, 110, 10]
    assert found["lines"] == [["before any", "copying"], ["the storage is full", "whole"]]
    assert found["ends"] == [False, *[True, False] * 300]


def test_held_out_messages_are_of_all_kinds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO / "app/src/main/python"))
    from seedtune_app.material import Messages

    messages = Messages(tmp_path)
    messages.name_labels(["work", "family"])
    messages.add("\n".join(f"message {number}" for number in range(16)))
    for place in range(16):
        messages.tap(place, ["work", "family"][place % 2])
    train, held_out = messages.split()
    assert sorted(row["label"] for row in held_out) == ["family", "family", "work", "work"]
    assert sorted(row["text"] for row in train + held_out) == sorted(
        row["text"] for row in messages.rows()
    )
    sys.modules.pop("seedtune_app.material"), sys.modules.pop("seedtune_app")


def test_it_computes_its_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO / "app/src/main/python"))
    from seedtune_app import session as module

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    order = {"kind": "sort", "share": 0.25, "paused": False, "starts": 0}
    listener = types.SimpleNamespace(waiting=lambda reason: None)
    session = module.Session(tmp_path / "marker", order, listener, {})
    session._rest(2.0)  # a step of so many seconds
    assert now[0] == pytest.approx(106.0)
    session._rest(3.0)  # and one of one more
    assert now[0] == pytest.approx(109.0)
    session.control.stop()
    session._rest(4.0)
    assert now[0] == pytest.approx(109.0)
    sys.modules.pop("seedtune_app.session"), sys.modules.pop("seedtune_app")
