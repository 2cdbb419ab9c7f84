"""An adapter of peft as the model to export: the same as what peft computes with it."""

import json
import shutil

import numpy as np
import pytest
from seedtune.export.model.load_model import load_causal_lm
from seedtune.runtime.errors import ModelError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def adapter(tiny_llama_folder, tmp_path):
    """A LoRA adapter of random weights as peft saves it, and the logits that peft finds."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    wanted = ["q_proj", "down_proj"]
    config = LoraConfig(r=3, lora_alpha=7, target_modules=wanted, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", logits(model)


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(2, 30).reshape(2, 14)).logits


@pytest.mark.parametrize("dtype", ["auto", "stored"])
def test_it_is_loaded_with_the_base_model_that_it_names(
    adapter, tiny_llama_folder, own_cache, dtype
):
    folder, wanted = adapter
    found = load_causal_lm(folder, dtype)
    np.testing.assert_allclose(logits(found.model), wanted, atol=1e-4)
    plain = load_causal_lm(tiny_llama_folder)
    assert np.abs(logits(plain.model) - wanted).max() > 0.3
    assert found.name == "lora" and found.sha256 != plain.sha256
    assert found.tokenizer_json == plain.tokenizer_json
    (kept,) = (own_cache / "models").iterdir()
    begun = kept.stat().st_mtime_ns
    assert load_causal_lm(folder).sha256 == found.sha256
    assert kept.stat().st_mtime_ns == begun, "it is merged once"


def test_another_base_model_can_be_given(adapter, tiny_llama_folder, tmp_path):
    folder, wanted = adapter
    told = json.loads((folder / "adapter_config.json").read_text())
    moved = shutil.copytree(tiny_llama_folder, tmp_path / "moved")
    for named in ("/not/there", None):
        told["base_model_name_or_path"] = named
        (folder / "adapter_config.json").write_text(json.dumps(told))
        with pytest.raises(ModelError, match="--base MODEL"):
            load_causal_lm(folder)
        found = load_causal_lm(folder, base=str(moved))
        np.testing.assert_allclose(logits(found.model), wanted, atol=1e-4)


def test_what_does_not_fit_is_refused(adapter, tiny_llama_folder):
    folder, _ = adapter
    with pytest.raises(ModelError, match=r"is no adapter .* leave out --base"):
        load_causal_lm(tiny_llama_folder, base=str(tiny_llama_folder))
    with pytest.raises(ModelError, match="is an adapter, too"):
        load_causal_lm(folder, base=str(folder))
    told = json.loads((folder / "adapter_config.json").read_text())
    told["target_modules"] = ["no_such_module"]
    (folder / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"cannot be merged into .*no_such_module"):
        load_causal_lm(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_causal_lm(folder)
