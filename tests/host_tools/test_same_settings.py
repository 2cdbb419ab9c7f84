"""Python and the command line choose the same settings for the same bundle and data."""

import json

import numpy as np
import pytest
from command_line import good
from seedtune.runtime import engines, open_model
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.tuning.budget import Budget
from tiny_bundle import TASK, write_tiny_bundle

COMPLETION = {"kind": "completion", "template": "{text}", "completion_field": "more"}
CHOICE = {"kind": "multiple_choice", "template": "{text}", "choice_fields": ["more", "less"],
          "label_field": "label"}  # fmt: skip
HIDDEN = {"hidden_blocks": [1]}


class SmoothEngine(Engine):
    """Log-probabilities that the values move a little."""

    entries = 12

    def __init__(self, hidden_width):
        self.hidden_width = hidden_width

    def score(self, batch, values, **nothing):
        candidates = np.stack([batch.candidates] * len(values))
        moved = values @ np.linspace(-1, 1, 12, dtype=np.float32)
        logp = -2 + np.sin(moved[:, None, None] + candidates)
        hidden = None
        if self.hidden_width:
            hidden = np.cos(np.arange(8) + candidates[:, :, :1]).astype(np.float32)
        return Scores(logp.astype(np.float32), hidden)


def settings_of(run):
    header = read_journal(run).header
    return {**header.settings, "shape": header.shape}


@pytest.mark.parametrize(
    ("task", "changes", "estimator", "chosen"),
    [
        (TASK, HIDDEN, "readout", {}),
        (CHOICE, HIDDEN, "readout", {"steps": 7, "seed": 3}),
        (TASK, {}, "per-example", {}),
        (COMPLETION, HIDDEN, "per-example", {"steps": 7, "seed": 3}),
    ],
)
def test_the_same_settings(tmp_path, monkeypatch, task, changes, estimator, chosen):
    width = 8 if "hidden_blocks" in changes else 0
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: SmoothEngine(width))
    bundle = write_tiny_bundle(tmp_path / "bundle", **changes).path
    (tmp_path / "task.json").write_text(json.dumps(task))
    files = []
    for name, start, count in (("train", 0, 24), ("held_out", 24, 6), ("test", 30, 2)):
        rows = [
            {"text": f"film {n} It was", "more": " great", "less": " bad", "label": n % 2}
            for n in range(start, start + count)
        ]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(file)
    train, held_out, test = files

    options = [part for name, value in chosen.items() for part in (f"--{name}", value)]
    good("tune", bundle, tmp_path / "shell", "--task", tmp_path / "task.json", "--train", train,
         "--data", held_out, "--test", test, "--forwards", 2, *options)  # fmt: skip
    with (
        open_model(bundle, task=task) as model,
        model.tuner(
            tmp_path / "python", train, held_out, budget=Budget(forwards=2), **chosen
        ) as tuner,
    ):
        for _ in tuner:
            pass

    from_shell, from_python = (settings_of(tmp_path / name) for name in ("shell", "python"))
    assert from_shell == from_python
    assert from_shell["estimator"] == estimator
    assert None not in from_shell.values()
    ends = [good("journal", "show", tmp_path / name) for name in ("shell", "python")]
    assert ends[0]["evaluations"] == ends[1]["evaluations"]
