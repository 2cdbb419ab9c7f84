"""SmolLM2 tuned and merged: transformers, peft and llama.cpp find what the program finds."""

import numpy as np
import pytest
import smollm2
from command_line import good

PROMPTS = (
    "The film was", "My favourite food is", "Once upon a time there was a", "How do plants grow?",
    "The capital of France is", "In the morning I like to", "Dear Anna, thank you for",
    "She opened the door and", "The weather tomorrow will be", "My dog always",
    "Write a short poem about the sea:", "The best way to learn a language is",
    "He looked at the clock and", "Scientists have found that", "To bake bread you need",
    "The old house on the hill", "Yesterday we went to the", "I think that people should",
    "The meeting was moved because", "When the rain stopped, the children",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peft_and_llama_cpp_compute_what_the_merged_checkpoint_does(tmp_path):
    import torch
    from llama_cpp import LlamaCpp, worst
    from peft import PeftModel
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.host_tools.data.fetch import fetch
    from seedtune.runtime.scoring.values import Values
    from seedtune.runtime.scoring.values_file import export_values
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = fetch("smollm2-135m")
    bundle, tuned = smollm2.whole(), tmp_path / "tuned.safetensors"
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

    def logits(model, prompt):
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
