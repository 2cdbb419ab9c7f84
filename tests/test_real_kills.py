"""``kill -9`` at random moments on really exported programs: resumed runs end on the same bits."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from exported_bundle import export_tiny_bundle
from faults import run_and_kill
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.replay import replay
from seedtune.runtime.settings import Settings
from seedtune.runtime.start import Start, values_sha256
from seedtune.runtime.tasks import task_from_spec
from seedtune.runtime.tuner import Tuner

SPEC = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"0": " terrible", "1": " great"},
}
ROWS = [
    {"text": f"A film about {word}, told with {manner}.", "label": str(place % 2)}
    for place, (word, manner) in enumerate(
        (word, manner) for word in ("rain", "a cat", "a town") for manner in ("humour", "patience")
    )
]


def run_to_the_end(folder: Path, bundle: Bundle) -> str:
    """The whole life of a process on a device: open everything, resume, finish."""
    task = task_from_spec(SPEC, bundle.tokenizer(), bundle.bounds, bundle.pad_id)
    examples = [task.encode(row, f"row {n}") for n, row in enumerate(ROWS)]
    with Tuner(
        open_engine(bundle, 1),
        Start.of(bundle),
        task,
        examples,
        folder=folder,
        settings=Settings(seed=5, steps=40, batch_size=2, lr=1e-3, eps=1e-2, eval_every=10),
        eval_examples=examples,
    ) as tuner:
        for _ in tuner:
            pass
        return values_sha256(tuner.values)


@pytest.mark.timeout(1200)
def test_500_kills_of_the_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SEEDTUNE_KILLS sets how many."""
    wanted = int(os.environ.get("SEEDTUNE_KILLS", "500"))
    bundle = export_tiny_bundle(tmp_path_factory.getbasetemp() / "exported")
    scratch = tmp_path_factory.mktemp("kills")
    # In a process of its own, so that this one never starts the thread pool that forks would lose.
    child = multiprocessing.get_context("fork").Process(
        target=run_to_the_end, args=(scratch / "whole", bundle)
    )
    began = time.monotonic()
    child.start()
    child.join()
    lasted = time.monotonic() - began
    whole = replay(scratch / "whole", Start.of(bundle))
    assert whole.history.steps == 40
    rng, kills, cycles = random.Random(0), 0, 0
    while kills < wanted:
        folder = scratch / f"run{cycles}"
        while run_and_kill(lambda f=folder: run_to_the_end(f, bundle), rng.random() * lasted):
            kills += 1
        found = replay(folder, Start.of(bundle))
        assert found.sha256 == whole.sha256
        assert found.history.steps == 40
        shutil.rmtree(folder)
        cycles += 1
    assert cycles >= wanted // 100, "most cycles must have been finished after their kills"


@pytest.mark.slow
def test_5_kills_of_smollm2(tmp_path: Path) -> None:
    from seedtune.host_tools.fetch import fetch
    from seedtune.host_tools.prepare import prepare

    prepared = prepare(str(fetch("smollm2-135m")))
    command = [
        *(str(Path(sys.executable).with_name("seedtune")), "tune", str(prepared.bundle.path)),
        *("--task", "sst2", "--limit", "8", "--steps", "12", "--batch-size", "4"),
        *("--lr", "1e-4", "--eps", "1e-2", "--eval-every", "6"),
    ]

    def start(folder: Path) -> subprocess.Popen[bytes]:
        arguments = [*command[:3], str(folder), *command[3:]]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    began = time.monotonic()
    process = start(tmp_path / "whole")
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    lasted = time.monotonic() - began
    start_values = Start.of(prepared.bundle)
    whole = replay(tmp_path / "whole", start_values)
    rng = random.Random(1)
    for number in range(5):
        folder = tmp_path / f"run{number}"
        process = start(folder)
        time.sleep(lasted * (0.3 + 0.6 * rng.random()))  # past the start-up
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start(folder)
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert replay(folder, start_values).sha256 == whole.sha256
