"""Six devices of the tiny model, really exported, and everything that may go wrong among them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from seedtune.runtime import TuningError, open_model
from seedtune.runtime.estimators import StepContext, make_estimator
from seedtune.runtime.estimators.pooled_fit import PooledFit, Sent, losses_and_gradients, summarise
from seedtune.runtime.fleet import (
    Device,
    Fleet,
    JudgedHead,
    PooledHead,
    PrivateHead,
    SharedSteps,
    examples_of,
    identity,
)
from seedtune.runtime.journal.operations import receive, share
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.tuning.batches import batch_indices

TASK = {
    "kind": "classification",
    "template": "{text} =",
    "label_field": "label",
    "verbalisers": {"no": "z", "yes": "a", "?": "m"},
}
WORDS = ["so", "good", "", "bad film", "12", "it was", "ÿ", "a a a a a"]
SIZES = (40, 12, 25, 9, 31, 18)
FLOOR = {"least_rows": 8, "least_devices": 3}
EXACT = {**FLOOR, "least_noise": 0.0}


def rows_of(device, count):
    """Uneven: the last device knows but one label, the others few of one."""
    rng = np.random.default_rng(device)
    rows = []
    for _ in range(count):
        label = int(rng.choice(3, p=(0.7, 0.2, 0.1))) if device < 5 else 2
        text = " ".join([*rng.choice(WORDS, 2), ("dull", "great", "what")[label]])
        rows.append({"text": text, "label": ("no", "yes", "?")[label]})
    return rows


@pytest.fixture(scope="module")
def model(bundle):
    with open_model(bundle, task=TASK, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def devices(model):
    return {
        n: Device(model, rows_of(n, size), rows_of(n + 10, 12), **EXACT)
        for n, size in enumerate(SIZES)
    }


Change = Callable[[dict[str, Any]], dict[str, Any] | None]


def carry(questions, devices, changes):
    """Answers, some of them changed on their way, or lost."""
    found = {}
    for number, question in questions.items():
        answer = devices[number].answer(question)
        changed = changes.get(number, lambda same: same)(answer)
        if changed is not None:
            found[number] = changed
    return found


def run(fleet, devices, changes=None):
    """All rounds; ``changes`` by round."""
    while not fleet.work.done:
        number = len(fleet.rounds) + 1
        print(fleet.take(carry(fleet.ask(devices), devices, (changes or {}).get(number, {}))))


def lost(answer):
    return None


def central(model, numbers, rounds=30):
    """The fit to all rows of some devices as one device's."""
    rows = [row for n in numbers for row in rows_of(n, SIZES[n])]
    seen = examples_of(model, model.encode(rows)).of_share(0.5)
    fit = PooledFit(3, seen.features.shape[2] - 1, 3)
    sent = Sent(summarise(seen))
    for _ in range(rounds):
        sent.add(*losses_and_gradients(seen, sent.summary.mean, fit.points[-1][None]))
        fit.advance([sent])
    return fit.points[-1]


def test_the_head_is_that_of_all_rows(model, devices):
    work = PooledHead(model, rounds=25)
    fleet = Fleet(identity(model), work, **FLOOR)
    run(fleet, devices)
    wanted = central(model, [*devices])
    assert np.linalg.norm(work.fit.points[-1] - wanted) < 1e-4 * np.linalg.norm(wanted)
    assert work.head.share == 0.5 and work.head.labels == model.task.labels
    # One number a feature and answer, without the last, and the losses.
    assert fleet.rounds[5].sent < 4 * 2 * (work.width + 1) + 200


def test_killed_late_and_lying_devices(model, devices):
    """The result is that of the honest ones that are there; the rounds name the others."""
    work = PooledHead(model, rounds=30)
    fleet = Fleet(identity(model), work, least_rows=8, least_devices=2)

    def lie(answer):
        return {**answer, "gradients": (-20 * np.frombuffer(answer["gradients"], "<f4")).tobytes()}

    killed = {n: {0: lost, 3: lost} for n in range(4, 31)}
    late = {n: {5: lost} for n in range(1, 6)}
    changes = {n: {**killed.get(n, {}), **late.get(n, {})} for n in range(1, 31)}
    changes[3][1] = lie
    run(fleet, devices, changes)
    assert fleet.rounds[2].refused == {1: "losses and gradients that contradict each other"}
    assert fleet.rounds[3].absent == (0, 3, 5) and 1 not in fleet.rounds[3].present
    assert fleet.rounds[5].joined == (5,) and fleet.rounds[-1].present == (2, 4, 5)
    assert "refused: 1 (losses" in str(fleet.rounds[2]) and "joined: 5" in str(fleet.rounds[5])
    wanted = central(model, [2, 4, 5])
    assert np.linalg.norm(work.fit.points[-1] - wanted) < 1e-4 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fleet": "0" * 64}, "another bundle or task"),
        ({"round": 1}, "answer to round 1, late"),
        ({"rows": 7}, "at least 8 must"),
        ({"rows": 30}, "30 rows, not 25"),
        ({"rows": "25"}, "rows"),
        ({"gradients": b"\0" * 12}, "has 12 bytes"),
        ({"gradients": None}, "has no bytes"),
        ({"losses": np.array([np.nan]).tobytes()}, "not finite"),
        ({"losses": np.array([-1.0]).tobytes()}, "below zero"),
    ],
)
def test_nonsense_is_refused_and_counted(model, devices, change, said):
    fleet = Fleet(identity(model), PooledHead(model), **FLOOR)
    fleet.take(carry(fleet.ask(devices), devices, {}))
    answers = carry(fleet.ask(devices), devices, {2: lambda answer: {**answer, **change}})
    found = fleet.take(answers)
    assert said in found.refused[2] and said in fleet.refused[2]
    assert found.present == (0, 1, 3, 4, 5) and 2 not in fleet.ask(devices)


def test_floors_of_the_server_and_of_a_device(model, devices):
    fleet = Fleet(identity(model), PooledHead(model), least_rows=8, least_devices=4)
    answers = carry(fleet.ask(devices), devices, dict.fromkeys((0, 1, 2), lost))
    with pytest.raises(TuningError, match=r"no answer: 0, 1, 2: at least 4 devices"):
        fleet.take(answers)
    question = fleet.ask(devices)[0]
    with pytest.raises(TuningError, match="2 devices are asked"):
        devices[0].answer({**question, "devices": 2})
    with pytest.raises(TuningError, match="another bundle or task"):
        devices[0].answer({**question, "fleet": "0" * 64})
    few = Device(model, rows_of(0, 7), **EXACT)
    with pytest.raises(TuningError, match="7 rows, it answers with 8"):
        few.answer(question)


def test_states_are_computed_once_and_stay(model, devices, monkeypatch):
    fleet = Fleet(identity(model), PooledHead(model), **FLOOR)
    question = fleet.ask(devices)[2]
    first = Device(model, rows_of(2, 25), **EXACT)
    answer = first.answer(question)
    monkeypatch.setattr("seedtune.runtime.fleet.device.examples_of", None)
    assert Device(model, "gone.jsonl", states=first.states, **EXACT).answer(question) == answer


def private(model, noise):
    texts = [{"text": word} for word in WORDS if word] * 4
    states = examples_of(model, model.encode(texts, labelled=False)).features[:, 0, :-1]
    return PrivateHead(model, states, noise=noise, clip=0.1, rounds=2)


def test_a_private_gradient_is_cut_and_refused_if_it_is_not(model, devices):
    work = private(model, 0.0)
    fleet = Fleet(identity(model), work, **FLOOR)
    answers = carry(fleet.ask(devices), devices, {})
    sent = {n: np.frombuffer(each["gradient"], "<f4") for n, each in answers.items()}
    assert max(map(np.linalg.norm, sent.values())) == pytest.approx(0.1, rel=1e-5)
    answers[4]["gradient"] = (sent[4] * np.float32(0.15 / np.linalg.norm(sent[4]))).tobytes()
    assert fleet.take(answers).refused == {4: "numbers longer than the clip"}
    run(fleet, devices)
    assert np.isfinite(work.head.own).all() and work.fit.steps == 2


def test_a_device_sends_nothing_exact_unless_it_is_told_to(model, devices, tmp_path):
    cautious = Device(model, rows_of(2, 25), rows_of(12, 12), **FLOOR)
    with SharedSteps(model, tmp_path / "run", **STEPS) as steps:
        for work in (PooledHead(model), steps, private(model, 0.0), private(model, 0.9)):
            question = Fleet(identity(model), work, **FLOOR).ask(devices)[2]
            with pytest.raises(TuningError, match=r"of 0(\.9)? clips, .* with 1 or more"):
                cautious.answer(question)
    enough = Fleet(identity(model), private(model, 1.0), **FLOOR).ask(devices)[2]
    assert cautious.answer(enough)["rows"] == 25
    pooled = Fleet(identity(model), PooledHead(model), **FLOOR).ask(devices)[2]
    lies = [{**pooled, "clip": 0.1, "noise": 2.0}, {**enough, "noise": np.nan}]
    lies += [{**enough, "clip": None}, {name: enough[name] for name in enough if name != "clip"}]
    for lie in lies:  # a server that promises noise which would not be added
        with pytest.raises(TuningError, match="clips, this device answers with 1 or more"):
            cautious.answer(lie)
    judged = JudgedHead(PooledHead(model).head)
    assert cautious.answer(Fleet(identity(model), judged, **FLOOR).ask(devices)[2])["rows"] == 12


def test_noise_is_added_on_the_devices_and_what_is_missing_is_counted(model, devices):
    work = private(model, 3.0)
    fleet = Fleet(identity(model), work, **FLOOR)
    question = fleet.ask(devices)[0]
    twice = [np.frombuffer(devices[0].answer(question)["gradient"], "<f4") for _ in range(2)]
    # The difference of two draws, each of 3 clips.
    assert (twice[0] - twice[1]).std() == pytest.approx(2**0.5 * 3 * 0.1, rel=0.3)
    fleet.take(carry(fleet.ask(devices), devices, {0: lost, 1: lost}))
    run(fleet, devices)
    assert work.release.effective == pytest.approx(3.0 * 4**0.5)


def test_a_device_keeps_what_judges_best_on_its_own_rows(model, devices):
    work = PooledHead(model)
    run(Fleet(identity(model), work, **FLOOR), devices)
    judged = JudgedHead(work.head)
    run(Fleet(identity(model), judged, **FLOOR), devices)
    assert judged.after[0] > judged.before[0] and judged.after[1] < judged.before[1]
    kept = [each.verdict for each in devices.values()]
    assert {"fleet", "own", "alone"} >= {each.ships for each in kept if each}
    odd = devices[5].verdict  # one label
    assert odd is not None and odd.accuracy["own"] >= odd.accuracy["start"]
    bad = JudgedHead(work.head_of(np.float32(-50) * work.head.weights))
    run(Fleet(identity(model), bad, **FLOOR), devices)
    for each in devices.values():
        assert each.verdict and each.verdict.ships in ("start", "alone"), (
            "on nothing of the fleet's"
        )


STEPS = {
    "estimator": "two-point",
    "steps": 100,
    "batch_size": 4,
    "lr": 1e-3,
    "eps": 1e-2,
    "seeds": 2,
}


def test_seeds_lead_all_to_the_same_values(model, devices, tmp_path):
    """As one run on the union of the batches, and a late device replays from the start."""
    start = Start.of(model.bundle)
    came: list[int] = []
    with SharedSteps(model, tmp_path / "run", **STEPS) as work:
        fleet = Fleet(identity(model), work, **FLOOR)
        while not work.done:
            here = {n: devices[n] for n in devices if n != 5 or len(fleet.rounds) >= 40}
            fleet.take(carry(fleet.ask(here), here, {}))
            came.append(len(fleet.rounds[-1].present))
        wanted = work.sha256
    assert came == [5] * 40 + [6] * 60 and fleet.rounds[40].joined == (5,)
    assert replay(tmp_path / "run", start).sha256 == wanted
    share(tmp_path / "run", tmp_path / "shared.bin", start)
    assert receive(tmp_path / "shared.bin", tmp_path / "received", start).sha256 == wanted
    assert (tmp_path / "shared.bin").stat().st_size < 3000

    settings = replay(tmp_path / "run", start).history.settings
    estimator, values = make_estimator(settings), start.tuned_from(None)
    lengths = {n: devices[n]._encoded("train") for n in devices}
    for step in range(100):
        union = []
        for n, rows in lengths.items():
            if n == 5 and step < 40:
                continue
            gold = np.array([row.gold for row in rows])
            chosen = batch_indices(
                step, seed=0, lengths=[row.length for row in rows], batch_size=4, labels=gold
            )
            union += [rows[place] for place in chosen]
        look = Look(model.engine, model.task, model.bundle.bounds, union)
        at = StepContext(0, step, eps=1e-2, lr=1e-3)
        estimator.apply(values, estimator.measure(look, values, at).scalars, at)
    assert values.sha256 == wanted


def test_steps_refuse_slopes_of_other_values_and_beyond_the_clip(model, devices, tmp_path):
    with SharedSteps(model, tmp_path / "run", clip=1e-4, **STEPS) as work:
        fleet = Fleet(identity(model), work, **FLOOR)
        long = {1: lambda answer: {**answer, "slopes": np.full(2, 1e-4).tobytes()}}
        other = {2: lambda answer: {**answer, "sha256": "0" * 64}}
        found = fleet.take(carry(fleet.ask(devices), devices, {**long, **other}))
        assert found.refused == {1: "numbers longer than the clip", 2: "slopes of other values"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"estimator": "per-example"}, "per-example cannot be shared"),
        ({"eps": "auto"}, "eps is 'auto'"),
        ({"noise": 1.0}, "give a clip"),
    ],
)
def test_settings_that_a_fleet_cannot_have(model, tmp_path, change, said):
    settings = {name: value for name, value in STEPS.items() if name != "seeds"}
    with pytest.raises(TuningError, match=said):
        SharedSteps(model, tmp_path / "run", **{**settings, **change})


def test_a_device_goes_on_from_shared_steps_with_its_own_rows(model, devices, tmp_path):
    start = Start.of(model.bundle)
    with SharedSteps(model, tmp_path / "run", **{**STEPS, "steps": 3}) as work:
        run(Fleet(identity(model), work, **FLOOR), devices)
    share(tmp_path / "run", tmp_path / "shared.bin", start)
    receive(tmp_path / "shared.bin", tmp_path / "own", start)
    held_out = model.encode(rows_of(11, 12))
    own = {"allow_changes": True, "steps": 6, "batch_size": 4}
    with model.tuner(tmp_path / "own", rows_of(1, 12), held_out, **own) as tuner:
        before = tuner.values.sha256
        assert before == work.sha256
        for _ in tuner:
            pass
        assert tuner.history.steps == 6 and tuner.values.sha256 != before
        assert tuner.tuned().metric is not None
