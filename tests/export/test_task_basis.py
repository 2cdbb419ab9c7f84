"""Directions for a task: they are the gradients' principal components, and hold real gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from seedtune.export.directions import task_basis
from seedtune.export.directions.task_basis import (
    generic_examples,
    learn_basis,
    principal_directions,
)
from seedtune.export.directions.task_loss import task_losses
from seedtune.export.model.load_model import LoadedModel, load_causal_lm
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.bundle.basis import Basis
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import DataError, ModelError
from seedtune.runtime.tasks import encode_rows, task_for

WORDS = ["the rain", "a small town", "patience", "it was great", "numbers", "yes or no", "the mat"]
CLASSES = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"1": " great", "0": " terrible"},
}
SPECS = {
    "classification": CLASSES,
    "multiple_choice": {
        "kind": "multiple_choice",
        "template": "{text} so",
        "choice_fields": ["a", "b"],
        "label_field": "label",
    },
    "completion": {"kind": "completion", "template": "{text}", "completion_field": "answer"},
}


@pytest.fixture
def loaded(exported_folder: Path, bundle: Bundle) -> LoadedModel:
    return load_causal_lm(exported_folder / "hf")


def unit(basis: Basis) -> np.ndarray:
    rows = basis.directions.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_components_of_a_known_covariance() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((500, 3)))[0].T
    deviation = np.array([8.0, 2.0, 0.5])
    gradients = (rng.standard_normal((300, 3)) * deviation) @ axes
    basis = principal_directions(gradients.astype(np.float16), 5)
    assert basis.size == 3  # no more is there
    assert np.abs((unit(basis) * axes).sum(axis=1)).min() > 0.98
    # One unit along a direction moves a logit by ``shifts``.
    moved = gradients @ (basis.scales[:, None] * basis.directions).T
    assert np.allclose(np.sqrt(np.mean(moved**2, axis=0)), basis.shifts, rtol=0.05)
    assert np.isclose(np.mean(basis.shifts.astype(np.float64) ** 2), 1, rtol=0.01)
    assert (np.diff(basis.shifts) < 0).all()


@pytest.mark.parametrize("kind", SPECS)
def test_learned_for_every_kind_of_task(kind: str, bundle: Bundle, loaded: LoadedModel) -> None:
    seen = []
    basis = learn_basis(
        loaded,
        bundle,
        SPECS[kind],
        WORDS,
        directions=4,
        examples=12,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert basis.directions.shape == (4, bundle.K)
    assert seen == [(n, 12) for n in range(1, 13)]
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_program_moves_as_the_host_says(bundle: Bundle, loaded: LoadedModel) -> None:
    """A probe along a direction shifts the logits of the exported program as far as expected."""
    basis = learn_basis(loaded, bundle, CLASSES, WORDS, directions=3, examples=40)
    task = task_for(bundle, CLASSES)
    rows = [{"text": text, "label": "1"} for text in WORDS]
    batch = task.collate(encode_rows(task, rows))
    engine = open_engine(bundle)
    values = np.repeat(bundle.values.astype(np.float32)[None], 2, axis=0)
    for number in range(3):
        ends = []
        for sign in (1, -1):
            values[1] = values[0]
            basis.add_one(values[1], number, sign * 0.5 / float(basis.shifts[number]))
            logp = engine.score(batch, values).logp
            ends.append((logp[1, :, 1] - logp[1, :, 0]).astype(np.float64))
        shift = (ends[0] - ends[1]) / 2
        assert 0.2 < np.sqrt(np.mean(shift**2)) < 1.2


def test_losses_are_those_of_the_task(bundle: Bundle) -> None:
    rng = np.random.default_rng(1)
    for spec in SPECS.values():
        task = task_for(bundle, spec)
        rows = [
            {"text": text, "label": n % 2, "a": " yes", "b": " no or 1", "answer": " the mat"}
            for n, text in enumerate(WORDS[:4])
        ]
        batch = task.collate(encode_rows(task, rows))
        logp = -rng.exponential(size=batch.candidates.shape).astype(np.float32)
        found = task_losses(task, torch.from_numpy(logp), batch)
        assert np.allclose(found.numpy(), task.losses(logp[None], batch)[0], rtol=1e-5)


def test_refusals(bundle: Bundle, loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match="need some text"):
        learn_basis(loaded, bundle, CLASSES, [])
    with pytest.raises(DataError, match="9 directions need at least as many examples, not 8"):
        learn_basis(loaded, bundle, CLASSES, WORDS, directions=9, examples=8)
    other = LoadedModel(loaded.model, loaded.tokenizer, loaded.tokenizer_json, "other", "f" * 64)
    with pytest.raises(ModelError, match="exported from another model"):
        learn_basis(other, bundle, CLASSES, WORDS)


def has_no_gradients(loaded: LoadedModel) -> bool:
    parameters = list(loaded.model.parameters())
    return not any(one.requires_grad or one.grad is not None for one in parameters)


def test_gradients_are_gone_before_their_components_are_taken(
    bundle: Bundle, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense ones are as large as the matrices."""
    seen = []
    plain = task_basis.principal_directions

    def watched(*arguments):
        seen.append(has_no_gradients(loaded))
        return plain(*arguments)

    monkeypatch.setattr(task_basis, "principal_directions", watched)
    learn_basis(loaded, bundle, CLASSES, WORDS, directions=2, examples=3)
    assert seen == [True]


@pytest.mark.parametrize("factor", [1e9, float("nan")])  # beyond float16, and damaged
def test_gradients_that_are_not_finite(bundle: Bundle, loaded: LoadedModel, factor: float) -> None:
    loaded.model.lm_head.weight.mul_(factor)
    with pytest.raises(ModelError, match=r"hf: gradient of text \d for this prompt is not finite"):
        learn_basis(loaded, bundle, CLASSES, WORDS, directions=2, examples=3)
    assert has_no_gradients(loaded)


def test_answers_beyond_hope_have_gradients(bundle: Bundle, loaded: LoadedModel) -> None:
    """The logit of an answer with a loss of hundreds is finite, though its odds are not."""
    loaded.model.lm_head.weight.mul_(300)
    basis = learn_basis(loaded, bundle, CLASSES, WORDS, directions=2, examples=6)
    assert basis.size == 2


def test_answers_that_do_not_react(bundle: Bundle, loaded: LoadedModel) -> None:
    loaded.model.lm_head.weight.zero_()
    with pytest.raises(DataError, match="do not react to the values: check template"):
        learn_basis(loaded, bundle, CLASSES, WORDS, directions=2, examples=3)


def test_texts_too_long_together_are_drawn_again(bundle: Bundle) -> None:
    spec = SPECS["multiple_choice"]
    task = task_for(bundle, spec, on_long="truncate")
    long = "the rain " * (bundle.bounds.positions // 2)
    found = generic_examples(task, [*WORDS, long], examples=50)
    assert len(found) == 50
    with pytest.raises(DataError, match="a generic text: "):
        generic_examples(task, [long], examples=1)
