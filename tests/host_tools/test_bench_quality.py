"""The table of methods: cells, results and summary, and every baseline on a tiny model."""

import json
import os
from importlib import import_module

import numpy as np
import pytest
from command_line import good
from seedtune.host_tools.bench import quality
from seedtune.host_tools.bench.contenders import lora, mezo, sparse_fp32
from seedtune.host_tools.bench.contenders.float_task import FloatEngine, FloatTask, task_losses
from seedtune.host_tools.bench.contenders.sparse_fp32 import answered, random_places
from seedtune.host_tools.bench.contenders.task_methods import METHODS, tuner_settings
from seedtune.host_tools.bench.measuring.quality_table import chosen_groups, summarise_quality
from seedtune.host_tools.bench.measuring.results_files import (
    RESULTS,
    merge_rows,
    read_rows,
    row_key,
)
from seedtune.host_tools.data.named_tasks import TaskData
from seedtune.runtime.bundle import Layer
from seedtune.runtime.estimators.noise import add_noise
from tiny_bundle import TASK, write_tiny_bundle

DATA = TaskData(
    "toy",
    [
        {"text": f"{word} {n}", "label": label}
        for n in range(20)
        for word, label in (("a film told with patience", "1"), ("the cat sat in the rain", "0"))
    ],
    [
        {"text": f"{word} {n}", "label": label}
        for n in range(20, 24)
        for word, label in (("a film told with patience", "1"), ("the cat sat in the rain", "0"))
    ],
    TASK,
)
CHOICES = TaskData(
    "choices",
    [
        {"prompt": f"it was {n}", "a": "good", "b": "the rain", "label": str(n % 2)}
        for n in range(9)
    ],
    [{"prompt": "it was", "a": "good", "b": "the rain", "label": "0"}],
    {
        "kind": "multiple_choice",
        "template": "{prompt}",
        "choice_fields": ["a", "b"],
        "label_field": "label",
    },
)
LINES = TaskData(
    "lines",
    [{"before": f"hello {n}", "reply": "the cat sat on the mat"} for n in range(9)],
    [{"before": "hello", "reply": "the cat sat on the mat"}],
    {"kind": "completion", "template": "{before}\n", "completion_field": "reply"},
)
SETTINGS = {
    "seed": 0, "batch_size": 4, "length": 48, "test_rows": 8, "forwards": 40, "eval_every": 20,
    "lr": 1e-4, "eps": 1e-3, "steps": 12, "rank": 4, "alpha": 8, "threads": 1,
    "estimator": "two-point", "schedule": "constant",
}  # fmt: skip


@pytest.fixture
def toy(tiny_llama_folder):
    """A function: the cell of a task on a fresh tiny model."""
    return lambda data=DATA: FloatTask.of(str(tiny_llama_folder), data, SETTINGS)


@pytest.mark.parametrize("data", [DATA, CHOICES, LINES], ids=lambda data: data.name)
def test_the_engine_scores_as_the_model_does(toy, data):
    import torch

    cell = toy(data)
    batch = cell.task.collate(cell.train[:5])
    found = FloatEngine(cell.model).score(batch, np.zeros((2, 0), np.float32)).logp
    rows, columns = np.divmod(batch.positions, batch.tokens.shape[1])
    for at, (row, column) in enumerate(zip(rows, columns, strict=True)):
        with torch.no_grad():  # without the padding behind the position
            logits = cell.model(torch.from_numpy(batch.tokens[row, : column + 1])[None]).logits
        logp = torch.log_softmax(logits[0, -1], dim=-1).numpy()[batch.candidates[at]]
        np.testing.assert_allclose(found[:, at], [logp, logp], atol=1e-5)


def test_random_places_are_spread_over_all_linears_but_the_head(toy):
    model = toy().model
    places = random_places(model, 5000, seed=0)
    assert sum(map(len, places.values())) == 5000
    assert len(places) == 14 and "lm_head" not in places
    for name, flat in places.items():
        assert (np.diff(flat) > 0).all() and flat[-1] < model.get_submodule(name).weight.numel()
    assert not np.array_equal(
        places["model.layers.0.mlp.up_proj"],
        random_places(model, 5000, seed=1)["model.layers.0.mlp.up_proj"],
    )


def test_mezo_perturbs_every_weight_and_puts_them_back(toy):
    cell = toy()
    weights = mezo.all_weights(cell.model)
    assert len(weights) == sum(each.numel() for each in cell.model.parameters())
    before = weights.copy()
    add_noise(weights, 1e-3, seed=0, step=0)
    assert (weights != before).all()
    # The model sees what happens to the array.
    embedding = cell.model.get_input_embeddings().weight.detach().numpy().reshape(-1)
    assert np.shares_memory(embedding, weights)
    add_noise(weights, -2e-3, seed=0, step=0)
    mezo.move(weights, 0.0, SETTINGS, 0)
    np.testing.assert_allclose(weights, before, atol=5e-7)


def test_mezo_lowers_the_loss(toy):
    found = mezo.run_on_task(toy(), SETTINGS)
    assert [at["forwards"] for at in found["curve"]] == [0, 20, 40]
    assert found["curve"][-1]["loss"] < found["curve"][0]["loss"] - 0.01
    shorter = mezo.run_on_task(toy(), SETTINGS | {"forwards": 20})
    assert shorter["curve"] == found["curve"][:2] and shorter["step_seconds"] > 0


@pytest.mark.parametrize("data", [DATA, CHOICES, LINES], ids=lambda data: data.name)
def test_the_differentiable_loss_is_the_tasks(toy, data):
    import torch

    cell = toy(data)
    batch = cell.task.collate(cell.train[:6])
    rng = np.random.default_rng(0)
    logp = -rng.exponential(size=batch.candidates.shape).astype(np.float32)
    found = task_losses(cell.task, torch.from_numpy(logp), batch).mean()
    assert float(found) == pytest.approx(cell.task.losses(logp[None], batch).mean(), rel=1e-5)


def test_lora_lowers_the_loss_and_leaves_the_base_weights(toy):
    cell = toy()
    base = {name: each.clone() for name, each in cell.model.named_parameters()}
    found = lora.run_on_task(cell, SETTINGS | {"eval_at": [0, 6], "lr": 1e-2})
    assert [at["forwards"] for at in found["curve"]] == [0, 18, 36]
    assert found["curve"][-1]["loss"] < found["curve"][0]["loss"] - 0.1
    assert found["step_seconds"] > 0
    for name, each in cell.model.named_parameters():
        if "lora" not in name:
            assert each.equal(base[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("mask", ["random", "sensitive"])
def test_the_sparse_baseline_moves_its_entries_alone(toy, tmp_path, mask):
    cell = toy()
    name = "model.layers.0.mlp.up_proj"
    shape = tuple(cell.model.get_submodule(name).weight.shape)
    bundle = write_tiny_bundle(
        tmp_path / "bundle",
        layers=(Layer(name, shape, 0, 12),),
        indices=np.arange(12, dtype=np.int64) * 7,
    )
    before = mezo.all_weights(cell.model).copy()
    settings = SETTINGS | {"mask": mask, "bundle": bundle.path, "lr": 1e-2, "eps": 1e-2}
    found = sparse_fp32.run_on_task(cell, settings)
    assert [at["forwards"] for at in found["curve"]] == [0, 20, 40]
    changed = np.count_nonzero(mezo.all_weights(cell.model) != before)
    assert changed == 12
    if mask == "sensitive":
        weight = cell.model.get_submodule(name).weight.detach().numpy().reshape(-1)
        assert weight[bundle.indices].tobytes() != before[:12].tobytes()


@pytest.mark.parametrize("data", [DATA, CHOICES, LINES], ids=lambda data: data.name)
def test_answered_examples_end_with_their_answers(toy, data):
    cell = toy(data)
    example = cell.train[1]
    text = cell.tokenizer.decode(answered(cell, example))
    wanted = {
        "toy": "the cat sat in the rain 0 It was terrible",
        "choices": "it was 1 the rain",
        "lines": "hello 1\nthe cat sat on the mat",
    }
    assert text == wanted[data.name]


def test_forwards_become_steps():
    settings = METHODS["int4-two-point"].settings | {"seed": 3, "batch_size": 16, "length": 48}
    found = tuner_settings(settings)
    assert (found["steps"], found["eval_every"], found["seed"]) == (500, 50, 3)
    several = tuner_settings(settings | {"seeds": 4})
    assert (several["steps"], several["eval_every"]) == (125, 12)  # 8 forwards a step


def test_a_cells_settings_are_all_that_it_depends_on(monkeypatch):
    def settings(data=DATA, forwards=100, test_rows=300):
        monkeypatch.setattr(quality, "load_task", lambda name: data)
        return quality._settings("mezo-fp32", "sst2", forwards, test_rows, None, "folder")

    one = settings()
    assert one == settings()
    other = TaskData(DATA.name, DATA.train[1:], DATA.test, DATA.spec)
    for changed in (settings(forwards=200), settings(test_rows=200), settings(data=other)):
        assert changed != one


def test_the_table_is_filled_merged_and_resumed(tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "load_task", lambda name: DATA)
    runs = []

    def in_this_process(function, *arguments):
        runs.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(quality, "call_function", in_this_process)
    asked = {
        "methods": ("mezo-fp32",),
        "tasks": ("sst2",),
        "forwards": 200,
        "model": str(tiny_llama_folder),
        "results": tmp_path / "results",
    }
    found = quality.bench_quality(**asked, seeds=(0,))
    assert set(found["tasks"]["sst2"]) == {"mezo-fp32"}
    assert found["tasks"]["sst2"]["mezo-fp32"]["best_at_forwards"] in (0, 100, 200)
    found = quality.bench_quality(**asked, seeds=(1, 0))
    assert len(runs) == 2
    assert found["tasks"]["sst2"]["mezo-fp32"]["seeds"] == 2
    quality.bench_quality(**asked, seeds=(0,))
    assert len(runs) == 2
    row = next(iter(read_rows(tmp_path / "results").values()))
    assert row["peak_rss_bytes"] > 0 and row["settings"]["model"] == str(tiny_llama_folder)
    assert quality.bench_quality(summary=True, results=tmp_path / "results") == found


def test_the_summary_of_the_committed_rows():
    """What else is in it, the pages' figures are compared with."""
    found = summarise_quality(read_rows(RESULTS))
    assert (found["ours"], found["tasks_below_start"]) == ("int4-readout", [])


def test_short_runs_of_a_search_stay_out_of_the_figures():
    def row(seed, forwards):
        about = {"method": "lora", "task": "sst2", "metric": "accuracy", "seed": seed}
        curve = [{"forwards": forwards, "accuracy": forwards / 1000}]
        return {**about, "settings": {"forwards": forwards}, "curve": curve}

    searched = [row(0, 900), row(0, 300), row(1, 300), row(0, 200), row(1, 200)]
    (group,) = chosen_groups(searched).values()
    assert (len(group.rows), group.last["mean"]) == (2, 0.3)


def test_the_threads_asked_for_are_numpy_s_too(tmp_path, monkeypatch):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = [os.environ.get(name) for name in names]

    def run(*, threads=None, results):
        return {"seen": [os.environ.get(name) for name in names]}

    monkeypatch.setattr(quality, "bench_quality", run)
    asked = ("bench", "quality", "--output", tmp_path)
    assert good(*asked, "--threads", 3)["seen"] == ["3", "3"]
    assert good(*asked)["seen"] == before
    assert [os.environ.get(name) for name in names] == before


def test_merging_keeps_old_rows_and_replaces_equal_ones(tmp_path):
    def row(seed, accuracy, **settings):
        return {row_key("lora", "sst2", seed, settings): {"accuracy": accuracy}}

    old = row(0, 0.5) | row(1, 0.6)
    merge_rows(old, tmp_path)
    new = row(1, 0.7) | row(0, 0.9, lr=1)
    merge_rows(new, tmp_path)
    assert read_rows(tmp_path) == old | new and len(old | new) == 3
    assert json.loads((tmp_path / "quality.json").read_text())["machine"]["cpu"]


def test_every_task_and_method_is_known():
    from seedtune.host_tools.data.named_tasks import TASKS

    assert set(quality.LENGTH) <= set(TASKS)
    for name, method in METHODS.items():
        module = import_module(f"seedtune.host_tools.bench.contenders.{method.module}")
        assert callable(module.run_on_task)
        if method.module == "int4":
            settings = tuner_settings({**method.settings, "seed": 0})
            own = {"int4-head-only": "text-head", "int4-head-only-alone": "text-head"}
            wanted = f"int4-{settings['estimator']}"
            assert own.get(name) == settings["estimator"] or name.startswith(wanted)
