"""The server: asks round by round, and writes what came of it."""

from .task import guarantee, opened  # isort: skip  (before Flower)

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from seedtune.runtime import Model, TuningError
from seedtune.runtime.fleet import (
    Answer,
    Fleet,
    JudgedHead,
    PooledHead,
    PrivateHead,
    Question,
    SharedSteps,
    Work,
    examples_of,
    identity,
)
from seedtune.runtime.journal.operations import share
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.values import Values

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One work, from the first round to its result."""
    config = context.run_config
    output = Path(str(config["output"]))
    with opened(config) as model:
        _wait(grid, int(config["devices"]), float(config["wait"]))
        work = _work(model, config, output)
        fleet = _run(grid, work, model, config)
        if isinstance(work, SharedSteps):
            work.close()
            share(output / "run", output / "shared.bin", Start.of(model.bundle))
            print(f"steps: {output / 'shared.bin'}, sha256 of the values {work.sha256}")
        else:
            model.values = Values(model.values.sensitive, work.head)
            model.save(output / "values.safetensors")
            judged = JudgedHead(work.head)
            _run(grid, judged, model, config)
            print(f"held-out accuracy and loss: {judged.before} before, {judged.after} after")
    noises = work.release.noise, work.release.effective
    print(guarantee(*noises, len(fleet.rounds), float(config["delta"])))


def _work(model: Model, config: Mapping[str, Any], output: Path) -> Any:
    rounds = {"rounds": int(config["rounds"])} if config["rounds"] else {}
    clip = {"clip": float(config["clip"])} if config["clip"] else {}
    output.mkdir(parents=True, exist_ok=True)
    match config["work"]:
        case "pooled":
            return PooledHead(model, **rounds)
        case "private":
            if not config["reference"]:
                raise TuningError(
                    "work=private needs rows of the server's own, without labels: give the "
                    "absolute path of their file (reference=...)"
                )
            rows = model.encode(str(config["reference"]), labelled=False)
            states = examples_of(model, rows).features[:, :, :-1]
            states = states.reshape(-1, states.shape[2])
            return PrivateHead(model, states, noise=float(config["noise"]), **rounds, **clip)
        case "steps":
            settings = {
                name: config[name.replace("_", "-")]
                for name in ("estimator", "steps", "batch_size", "lr", "eps")
            }
            noise = float(config["noise"])
            return SharedSteps(model, output / "run", noise=noise, **clip, **settings)
    raise TuningError(f"work={config['work']} is unknown; take pooled, private or steps")


def _wait(grid: Grid, devices: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while len(list(grid.get_node_ids())) < devices and time.monotonic() < until:
        time.sleep(1)


def _run(grid: Grid, work: Work, model: Model, config: Mapping[str, Any]) -> Fleet:
    fleet = Fleet(
        identity(model),
        work,
        least_rows=int(config["least-rows"]),
        least_devices=int(config["least-devices"]),
    )
    while not work.done:
        began = time.monotonic()
        answers = _carry(grid, fleet.ask(grid.get_node_ids()), float(config["timeout"]))
        print(f"{fleet.take(answers)}; {time.monotonic() - began:.1f} s", flush=True)
    return fleet


def _carry(grid: Grid, questions: Mapping[int, Question], seconds: float) -> dict[int, Answer]:
    """Answers that came in time; why others did not, is printed."""
    messages = [
        Message(
            RecordDict({"question": ConfigRecord(question)}),
            dst_node_id=device,
            message_type=MessageType.TRAIN,
            group_id=str(question["round"]),
        )
        for device, question in questions.items()
    ]
    answers = {}
    for reply in grid.send_and_receive(messages, timeout=seconds):
        if reply.has_content():
            answers[reply.metadata.src_node_id] = dict(reply.content["answer"])
        else:
            print(f"device {reply.metadata.src_node_id}: {reply.error.reason[-300:]}")
    return answers
