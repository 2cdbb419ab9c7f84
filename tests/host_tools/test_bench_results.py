"""The benchmarks whose figures are committed: their arithmetic, and a small run of the loop's."""

import json
import math

import numpy as np
import pytest
from seedtune.host_tools.bench import seeds
from seedtune.host_tools.bench.fidelity import difference
from seedtune.host_tools.bench.measuring import tuning_run
from seedtune.host_tools.bench.measuring.perplexity import perplexity
from seedtune.host_tools.bench.measuring.results_files import (
    RESULTS,
    draw_curves,
    machine,
    write_figures,
)
from seedtune.host_tools.bench.measuring.tuning_run import mean_and_deviation
from seedtune.host_tools.bench.recipes import DEFAULT, EPS, RECIPES, noise_figures
from seedtune.host_tools.bench.seeds import bench_seeds, summarise
from seedtune.host_tools.data.named_tasks import TaskData
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.tuning.loss_noise import measure_loss_noise
from tiny_bundle import TASK, write_tiny_bundle


def test_the_machine_is_named():
    found = machine()
    assert found["cpu"] and found["cores"] >= 1 and found["memory_gib"] > 0
    assert found["numpy"] == np.__version__


def test_figures_are_written_with_the_machine(tmp_path):
    content = write_figures("some", {"accuracy": 0.5}, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "some.json").read_text()) == content
    assert content["accuracy"] == 0.5 and content["machine"] == machine()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SeedtuneError, match=r"file.some\.json: cannot be written"):
        write_figures("some", {}, tmp_path / "file")


def test_a_write_that_breaks_off_leaves_the_old_figures(tmp_path, monkeypatch):
    write_figures("some", {"accuracy": 0.5}, tmp_path)
    before = (tmp_path / "some.json").read_bytes()

    def broken(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(SeedtuneError, match=r"some\.json: cannot be written"):
        write_figures("some", {"accuracy": 0.6}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["some.json"]
    assert (tmp_path / "some.json").read_bytes() == before


def test_curves_are_drawn(tmp_path):
    curve = [
        {"forwards": 0, "loss": 1.0, "accuracy": 0.5},
        {"forwards": 2, "loss": 0.9, "accuracy": 0.6},
    ]
    draw_curves("title", {"one": curve, "two": curve}, "curve", tmp_path)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == {"mean": 2.0, "deviation": 1.0}
    assert mean_and_deviation([4.0]) == {"mean": 4.0, "deviation": 0.0}


def test_seeds_are_summarised_by_gain():
    runs = {
        str(seed): {
            "before": {"accuracy": 0.5, "loss": 0.7},
            "after": {"accuracy": after, "loss": 0.6},
        }
        for seed, after in enumerate((0.6, 0.7, 0.8))
    }
    found = summarise(runs)
    assert found["seeds"] == 3
    assert found["accuracy_gain"]["mean"] == pytest.approx(0.2)
    assert found["accuracy_gain"]["deviation"] == pytest.approx(0.1)
    assert found["accuracy_before"] == {"mean": 0.5, "deviation": 0.0}


def test_differences_keep_sign_and_size_apart():
    found = difference(np.array([1.0, 2.0]), np.array([2.0, 0.0]))
    assert found == {"mean_absolute": 1.5, "largest": 2.0, "mean": 0.5}


def test_perplexity_scores_every_next_token_once():
    bounds = Bounds(probes=2, rows=2, length=4, positions=6, candidates=2)
    text = np.arange(20).reshape(5, 4)
    seen: list[tuple[int, int]] = []

    def score(batch, values):
        assert len(batch.tokens) <= bounds.rows and len(batch.positions) <= bounds.positions
        here = batch.tokens.reshape(-1)[batch.positions]
        seen.extend(zip(here.tolist(), batch.candidates[:, 0].tolist(), strict=True))
        return np.full((1, *batch.candidates.shape), -math.log(7), np.float32)

    found = perplexity(score, text, np.zeros((1, 1), np.float32), bounds)
    assert found == pytest.approx(7, rel=1e-6)
    assert seen == [(token, token + 1) for token in range(20) if token % 4 != 3]


def test_perplexity_refuses_sequences_over_the_bounds():
    with pytest.raises(ValueError, match="exceed"):
        perplexity(None, np.zeros((1, 9), np.int64), np.zeros((1, 1)), Bounds(1, 1, 8, 8, 1))


def test_noise_figures_are_by_eps():
    noise = measure_loss_noise(
        lambda rows: rows.sum(axis=1, dtype=np.float64),
        np.ones(64, np.float32),
        seed=0,
        ladder=EPS,
    )
    found = noise_figures(noise)
    assert set(found["estimate_error"]) == set(found["typical_estimate"]) == {"0.001", "0.01"}
    assert found["loss"] == 64.0


def test_recipes_differ_from_the_default_in_what_can_be_chosen():
    from inspect import signature

    from seedtune.export.recipe import Recipe
    from seedtune.host_tools.prepare.prepare import prepare

    assert RECIPES[DEFAULT] == {}
    for name, options in RECIPES.items():
        assert set(options) <= set(signature(prepare).parameters), name
        assert (
            name == DEFAULT
            or Recipe(**options.get("recipe", {})) != Recipe()
            or (options["fraction"] != signature(prepare).parameters["fraction"].default)
        )


def test_committed_figures_name_their_machine():
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for file in files:
        assert json.loads(file.read_text())["machine"]["cpu"], file


def test_every_committed_picture_is_shown():
    pages = "".join(page.read_text() for page in RESULTS.glob("*.md"))
    for picture in RESULTS.glob("*.png"):
        assert f"]({picture.name})" in pages


class CountingEngine(Engine):
    """Prefers the label that the first value names, and counts its calls."""

    entries, hidden_width = 12, 0
    calls = 0

    def score(self, batch, values):
        CountingEngine.calls += 1
        first = np.tanh(values[:, :1, None])
        found = np.concatenate([-first, first], axis=2) - 2
        return Scores(np.tile(found, (1, len(batch.positions), 1)).astype(np.float32), None)


def test_seeds_resume_finished_runs_and_write_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_run, "open_engine", lambda bundle, threads: CountingEngine())
    # The quickstart's own need hidden states, which this program lacks.
    two_point = {"estimator": "two-point", "lr": 1e-3, "eps": 1e-2}
    monkeypatch.setattr(seeds, "RUNS", {"readout": two_point})
    bundle = write_tiny_bundle(tmp_path / "bundle")
    data = TaskData(
        "tiny",
        [{"text": f"the plot was good {n}", "label": "1"} for n in range(20)],
        [{"text": f"the film was bad {n}", "label": "1"} for n in range(5)],
        TASK,
    )
    asked = {
        "seeds": (0, 1),
        "steps": 8,
        "long_steps": 0,
        "bundle": bundle,
        "data": data,
        "runs": tmp_path / "runs",
        "results": tmp_path / "results",
    }
    found = bench_seeds(**asked)
    curve = found["runs"]["1"]["curve"]
    assert [point["forwards"] for point in curve] == [0, 4, 8, 12, 16]
    assert found["summary"]["seeds"] == 2 and found["runs"]["0"]["skipped"] == 0
    assert found["runs"]["0"]["after"]["loss"] < found["runs"]["0"]["before"]["loss"]
    assert (tmp_path / "results" / "seeds.png").is_file()
    assert json.loads((tmp_path / "results" / "seeds.json").read_text()) == found
    CountingEngine.calls = 0
    assert bench_seeds(**asked) == found
    assert CountingEngine.calls == 0  # both runs had ended: nothing is computed again
    bench_seeds(**asked | {"seeds": (0, 1, 2)})
    assert CountingEngine.calls == 8 + 5  # a step of short rows is one call, and five evaluations
