"""SmolLM2 tuned and merged: transformers, peft and llama.cpp find what the program finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import good
from numpy.typing import NDArray

ROWS = 40
PROMPTS = (
    "The film was", "My favourite food is", "Once upon a time there was a", "How do plants grow?",
    "The capital of France is", "In the morning I like to", "Dear Anna, thank you for",
    "She opened the door and", "The weather tomorrow will be", "My dog always",
    "Write a short poem about the sea:", "The best way to learn a language is",
    "He looked at the clock and", "Scientists have found that", "To bake bread you need",
    "The old house on the hill", "Yesterday we went to the", "I think that people should",
    "The meeting was moved because", "When the rain stopped, the children",
)  # fmt: skip


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peft_and_llama_cpp_compute_what_the_merged_checkpoint_does(tmp_path: Path) -> None:
    import torch
    from llama_cpp import LlamaCpp, worst
    from peft import PeftModel
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.host_tools.data.fetch import fetch
    from seedtune.host_tools.prepare.prepare import prepare
    from seedtune.runtime.scoring.values import Values
    from seedtune.runtime.scoring.values_file import export_values
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = fetch("smollm2-135m")
    bundle, tuned = prepare(str(source)).bundle, tmp_path / "tuned.safetensors"
    start = bundle.values.astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(bundle.K, np.float32)
    export_values(tuned, Values(start + np.abs(start).mean() / 20 * noise), bundle, step=3)
    for to in ("hf", "peft", "gguf"):
        out = tmp_path / f"out.{to}"
        good("merge", bundle.path, source, out, "--to", to, "--values", tuned)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out.hf")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out.hf")
    base = load_causal_lm(source).model
    opened = LlamaCpp(tmp_path / "out.gguf")
    tokens = {prompt: tokenizer(prompt)["input_ids"] for prompt in PROMPTS}

    def logits(model: Any, prompt: str) -> Any:
        with torch.no_grad():
            return model(torch.tensor([tokens[prompt]])).logits

    moved = max(float((logits(base, one) - logits(merged, one)).abs().max()) for one in PROMPTS[:3])
    adapted = PeftModel.from_pretrained(base, tmp_path / "out.peft")
    same = 0
    for prompt in PROMPTS:
        torch.testing.assert_close(
            logits(adapted, prompt), logits(merged, prompt), rtol=0, atol=1e-4
        )
        # llama.cpp rounds what enters a quantised matrix to 8 bits: near ties may turn.
        ahead, _ = worst(merged, tokens[prompt], opened.written(prompt, tokens[prompt], 8))
        assert ahead < 0.3, prompt
        same += ahead == 0
    assert moved > 0.1 and same >= 12
