"""What docs/watching.md and the notebook show works as it stands, on a tiny bundle."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from compiler import needs_compiler
from doc_pages import ROOT, python_of, write_files
from tiny_bundle import TASK, with_task

PAGE = "docs/watching.md"
NOTEBOOK = ROOT / "examples" / "notebook" / "tune.ipynb"


def needs(*modules):
    """Skips where one is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def folder(bundle, tmp_path):
    """With a bundle that has a task, and rows for it."""
    write_files("docs/classification.md", tmp_path)
    with_task(bundle, tmp_path / "model.seedtune", TASK)
    return tmp_path


def run(number, folder):
    """The page's block of that number, in a process of its own; returns what it printed."""
    command = [sys.executable, "-W", "ignore", "-c", python_of(PAGE)[number]]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
    environment = {**os.environ, "DO_NOT_TRACK": "true", **quiet}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs_compiler
@needs("tensorboard")
def test_tensorboard(folder):
    run(0, folder)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    assert {*events.Tags()["scalars"]} == {"loss", "held-out metric"}
    assert events.Scalars("loss")[0].step == 1


@needs_compiler
@needs("mlflow", "sqlalchemy", "alembic")
def test_mlflow(folder):
    run(1, folder)
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (done,) = client.search_runs(["0"])
    assert {*done.data.metrics} == {"loss", "held_out_metric"}
    assert client.get_metric_history(done.info.run_id, "loss")[0].step == 1


@needs_compiler
@needs("wandb")
def test_wandb_offline(folder):
    run(2, folder)
    assert [*folder.glob("wandb/offline-run-*/run-*.wandb")]


@needs_compiler
def test_logging(folder):
    assert "INFO:seedtune:run_logged: from step 0" in run(3, folder)


@needs_compiler
@needs("nbclient", "ipykernel", "matplotlib", "tqdm")
def test_the_notebook_runs_from_rows_to_an_answer(folder):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    assert any("image/png" in each.get("data", {}) for each in outputs), "a curve"
    assert "Prediction(answer=" in outputs[-1]["data"]["text/plain"]
    assert (folder / "run" / "journal.bin").is_file()


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
