"""The sensitive values by the gradient through the upper blocks' MLPs, on the tiny model."""

from dataclasses import replace

import numpy as np
import pytest
from every_operation import check_every_operation
from film_run import World, film_rows
from hypothesis import given
from hypothesis import strategies as st
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import StepContext, mlp_gradient
from seedtune.runtime.estimators.mlp_gradient import MlpGradient
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import share
from seedtune.runtime.scoring.text_part import generic_tokens
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning import tuner
from seedtune.runtime.tuning.tuner import Tuner

SPEC = {
    "kind": "classification", "template": "{text} It was", "label_field": "label",
    "verbalisers": {"b": " terrible", "a": " great"},
}  # fmt: skip
SETTINGS = {"estimator": "mlp-gradient", "steps": 20, "batch_size": 8, "eval_every": 10, "lr": 0.03}


def labelled(count, seed=0):
    return [
        {"text": row["text"], "label": "a" if "great" in row["said"] else "b"}
        for row in film_rows(count, seed)
    ]


@pytest.fixture(scope="module")
def world(bundle):
    found = World(bundle, SPEC, labelled(64), labelled(16, seed=1), SETTINGS)
    with found.engine:
        yield found


@pytest.fixture(scope="module")
def estimator(world):
    """As a run of the two blocks has it: it moves the values of the second."""
    blocks = world.start.blocks
    return MlpGradient(1, int(np.searchsorted(blocks, 1)), len(blocks))


def test_it_learns_by_values_of_the_upper_block_alone(world, tmp_path, estimator):
    history, values = world.run(tmp_path / "run")
    assert read_journal(tmp_path / "run").header.scalar_count == estimator.scalar_count
    first, last = history.evaluations[0].loss, history.evaluations[-1].loss
    assert last < first - 0.001
    moved = values.sensitive != world.start.values
    assert values.part is None
    assert moved[estimator.first :].any() and not moved[: estimator.first].any()
    assert (world.start.blocks[estimator.first :] == 1).all() and estimator.first > 0


def test_a_short_step_along_it_gains_as_much_as_it_says(world, estimator):
    """What attention would hand on is missing, and int8 inputs round: most of it, not all."""
    look = world.look(32)
    start = Values(world.start.values.copy())
    measured = estimator.measure(look, start, StepContext(0, 0))
    gradient = measured.scalars.astype(np.float64)
    np.testing.assert_allclose(measured.losses, look.losses(start.sensitive[None]))
    along = np.zeros_like(start.sensitive)
    size = 0.02 / np.square(gradient).sum()
    along[estimator.first :] = size * gradient
    down, up = look.mean_losses(start.sensitive + np.stack([-along, along]))
    assert (up - down) / 2 == pytest.approx(0.02, rel=0.3)


def test_writing_has_a_pull_that_holds_other_text(world, tmp_path, monkeypatch):
    """The same steps move generic text further without it."""
    task = task_for(world.bundle, SAID)
    rows = encode_rows(task, [{"text": row["text"], "said": row["said"]} for row in film_rows(64)])
    head, apart = world.text, []
    for pull in (0.0, 30.0):
        monkeypatch.setattr(mlp_gradient, "PULL", pull)
        settings = {**SETTINGS, "steps": 8}
        given = {"task": task, "train": rows, "eval_examples": None, "settings": settings}
        with world.tuner(tmp_path / str(pull), **given) as live:
            reports = list(live)
            states = [
                generic_tokens(world.look(), values, head, (), np.arange(8), 200).states
                for values in (world.start.values, live.values.sensitive)
            ]
        assert reports[-1].loss < reports[0].loss
        apart.append(np.square(states[1] - states[0]).mean())
    assert apart[1] < 0.8 * apart[0]


def test_every_operation_ends_on_the_same_values(world, tmp_path):
    check_every_operation(tmp_path, world.tuner, world.start, {**SETTINGS, "steps": 100})


def test_its_journal_may_not_be_shared(world, tmp_path):
    world.run(tmp_path / "run", steps=2)
    with pytest.raises(JournalError, match="single examples"):
        share(tmp_path / "run", tmp_path / "sent", world.start)


def test_it_is_refused_where_no_gradient_comes_down(world, tmp_path):
    start = replace(world.start, kinds={})
    with pytest.raises(TuningError, match="export with --terms 8"):
        Tuner(world.engine, start, world.task, world.train, folder=tmp_path, settings=SETTINGS)


def test_memory_of_the_blocks_is_left_to_it(world, tmp_path, monkeypatch):
    """Passes are cut to what it, its state and the rows known leave; seeds alone need no blocks."""
    left, real = {}, tuner.fit_passes
    for name in ("mlp-gradient", "two-point"):

        def noted(*given, name=name, **more):
            left[name] = more["reserve"]
            return real(*given, **more)

        monkeypatch.setattr(tuner, "fit_passes", noted)
        settings = {"estimator": name, "steps": 1, "batch_size": 8}
        with world.tuner(tmp_path / name, settings=settings):
            pass
    held = world.text.terms.memory_bytes + world.text.words.memory_bytes
    assert left["mlp-gradient"] - left["two-point"] >= held


def test_a_step_is_adams():
    import torch

    generator = np.random.default_rng(0)
    start = generator.normal(size=6).astype(np.float32)
    values, own = Values(start.copy()), MlpGradient(0, 2, 6)
    free = torch.nn.Parameter(torch.from_numpy(start[2:].copy()))
    adam = torch.optim.Adam([free], lr=0.01, betas=(0.9, 0.99), eps=0)
    for step in range(20):
        gradient = generator.normal(size=4).astype(np.float16)
        gradient[3] = 0  # a value that nothing reaches stays
        own.apply(values, gradient, StepContext(0, step, lr=0.01))
        free.grad = torch.from_numpy(gradient.astype(np.float32))
        adam.step()
    np.testing.assert_allclose(values.sensitive[2:5], free.detach().numpy()[:3], rtol=1e-4)
    np.testing.assert_array_equal(values.sensitive[[0, 1, 5]], start[[0, 1, 5]])


CHOICES = {
    "kind": "multiple_choice", "template": "{text}", "choice_fields": ["one", "two"],
    "label_field": "label",
}  # fmt: skip
SAID = {"kind": "completion", "template": "{text}", "completion_field": "said"}


@pytest.mark.parametrize("spec", [SPEC, CHOICES, SAID], ids=lambda spec: spec["kind"])
@given(seed=st.integers(0, 99))
def test_slopes_are_those_of_the_losses(world, spec, seed):
    task = task_for(world.bundle, spec)
    asked = [{**row, "one": " good", "two": " very bad", "said": " good."} for row in labelled(3)]
    if spec is CHOICES:
        asked = [{**row, "label": str(n % 2)} for n, row in enumerate(asked)]
    batch = task.collate(encode_rows(task, asked))
    generator = np.random.default_rng(seed)
    logp = generator.normal(-3, 2, batch.candidates.shape).astype(np.float32)
    along = generator.normal(size=logp.shape)
    ends = np.stack([logp + 1e-3 * along, logp - 1e-3 * along]).astype(np.float64)
    up, down = task.losses(ends, batch).sum(axis=1)
    slope = float((task.slopes(logp, batch) * along).sum())
    assert (up - down) / 2e-3 == pytest.approx(slope, rel=1e-3, abs=1e-4)
