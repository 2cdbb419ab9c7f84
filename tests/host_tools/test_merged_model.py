"""SmolLM2 with a text head, merged into a checkpoint: transformers finds what the program finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import good
from numpy.typing import NDArray

ROWS = 40


def mean_losses(net: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Of each row's completion, as transformers computes them."""
    import torch

    found = []
    for row in rows:
        text = f"{row['before']}\n"
        tokens = tokenizer(text + row["reply"], return_offsets_mapping=True)
        start = next(i for i, (_, end) in enumerate(tokens["offset_mapping"]) if end > len(text))
        ids = torch.tensor([tokens["input_ids"]])
        labels = ids.clone()
        labels[:, :start] = -100
        with torch.no_grad():
            found.append(float(net(ids, labels=labels).loss))
    return np.array(found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tuned_head_helps_in_transformers_as_it_does_in_the_program(tmp_path: Path) -> None:
    from seedtune.export.load_merged import MODEL, load_merged
    from seedtune.host_tools.data.fetch import fetch
    from seedtune.host_tools.data.named_tasks import load_task
    from seedtune.host_tools.prepare.prepare import prepare
    from seedtune.runtime import open_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(fetch("smollm2-135m"))
    bundle, data = prepare(source).bundle, load_task("chat")
    rows = data.test[:ROWS]
    with open_model(bundle, task=data.spec, on_long="truncate") as model:
        before = np.array([model.evaluate([row]).loss for row in rows])
        with model.tuner(tmp_path / "run", data.train[-64:], steps=4) as tuner:
            list(tuner)
        model.load(tmp_path / "run")
        ours = np.array([model.evaluate([row]).loss for row in rows]) - before
    merged = tmp_path / "merged"
    assert good("merge", bundle.path, source, merged, "--run", tmp_path / "run")["head"]
    tokenizer = AutoTokenizer.from_pretrained(merged / MODEL)
    plain = mean_losses(AutoModelForCausalLM.from_pretrained(merged / MODEL), tokenizer, rows)
    theirs = mean_losses(load_merged(merged), tokenizer, rows) - plain
    assert ours.mean() < -0.05, "four steps must teach something"
    # The program rounds to int4 and int8, each processor in its own way; what the head changes is
    # of the same size all the same, row by row.
    assert 0.5 < theirs.mean() / ours.mean() < 2
    assert np.corrcoef(ours, theirs)[0, 1] > 0.7
