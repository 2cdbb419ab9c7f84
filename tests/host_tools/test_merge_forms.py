"""``merge --to peft`` and ``--to gguf``: peft and llama.cpp compute what the merged model does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from command_line import bad, good
from llama_cpp import LlamaCpp, worst
from seedtune.export.gguf_file import GgufNames, write_tuned_gguf
from seedtune.export.peft_adapter import Moved
from seedtune.runtime.errors import ModelError
from seedtune.runtime.scoring import text_part
from seedtune.runtime.scoring.parts import kinds_of, restored
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values
from tiny_model import CORPUS

PROMPTS = [*CORPUS, "", "odd \n\n text\t9 8é", "a", "  "]


@pytest.fixture(scope="module")
def source(exported_folder, bundle):
    """The model that the bundle was made from."""
    return exported_folder / "hf"


@pytest.fixture(scope="module")
def tuned(bundle, tmp_path_factory):
    """Values of which those of one matrix, and a few others, are where they were."""
    file = tmp_path_factory.mktemp("tuned") / "values.safetensors"
    noise = np.random.default_rng(0).standard_normal(bundle.K, np.float32)
    first = bundle.layers[0]
    noise[first.offset : first.offset + first.count] = 0
    noise[-3:] = 0
    export_values(file, Values(bundle.values + noise), bundle, step=3)
    return file


@pytest.fixture(scope="module")
def merged(bundle, source, tuned, tmp_path_factory):
    """The merged checkpoint, as transformers loads it."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("merged") / "hf"
    good("merge", bundle.path, source, folder, "--values", tuned)
    return AutoModelForCausalLM.from_pretrained(folder)


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(2, 30).reshape(2, 14)).logits


def test_peft_loads_sparse_values_as_the_merged_checkpoint_has_them(
    bundle, source, tuned, merged, tmp_path
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "adapter"
    found = good("merge", bundle.path, source, out, "--to", "peft", "--values", tuned)
    moved = bundle.K - bundle.layers[0].count - 3
    assert found["changed"] >= moved, "those that stay are at most rounded to float16"
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source.resolve())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, out)
    torch.testing.assert_close(logits(loaded), logits(merged), rtol=0, atol=1e-4)
    assert (logits(merged) - before).abs().max() > 0.5
    whole = loaded.merge_and_unload()
    torch.testing.assert_close(logits(whole), logits(merged), rtol=0, atol=1e-4)


def test_llama_cpp_reads_the_merged_model(bundle, source, tuned, merged, tmp_path):
    from transformers import AutoTokenizer

    file = tmp_path / "model.gguf"
    good("merge", bundle.path, source, file, "--to", "gguf", "--values", tuned)
    same_as(LlamaCpp(file), merged, AutoTokenizer.from_pretrained(source))


def same_as(opened, model, tokenizer):
    """llama.cpp writes what the model does, of texts that it cuts into tokens itself."""
    written = 0
    for prompt in filter(None, PROMPTS):
        tokens = tokenizer(prompt)["input_ids"]
        found = opened.written(prompt, tokens, 6)
        if found:
            ahead, apart = worst(model, tokens, found)
            assert ahead < 1e-3 and apart < 1e-3, prompt
        written += len(found)
    assert written >= 12


def test_a_gguf_source_is_copied_but_for_what_was_tuned(source, tmp_path):
    import gguf
    import torch
    from seedtune.export.gguf_model import write_gguf_model
    from seedtune.export.model.load_model import load_causal_lm
    from transformers import AutoTokenizer

    loaded = load_causal_lm(source)
    base, copy, names = tmp_path / "base", tmp_path / "copy", GgufNames(loaded.model.config)
    write_gguf_model(base, loaded, tmp_path / "work")
    generator, moved = np.random.default_rng(4), {}
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"):
        weight = loaded.model.get_submodule(name).weight
        places = np.sort(generator.choice(weight.numel(), 40, replace=False))
        flat = weight.view(-1)[torch.from_numpy(places)].numpy()
        after = flat + generator.standard_normal(40, np.float32)
        moved[name] = Moved(tuple(weight.shape), places, flat, after)
    write_tuned_gguf(copy, base, moved, names)
    for name, one in moved.items():
        flat = loaded.model.get_submodule(name).weight.view(-1)
        flat[torch.from_numpy(one.places)] = torch.from_numpy(one.after)
    same_as(LlamaCpp(copy), loaded.model, AutoTokenizer.from_pretrained(source))

    one, other = gguf.GGUFReader(base), gguf.GGUFReader(copy)
    assert list(one.fields) == list(other.fields)
    pairs = list(zip(one.tensors, other.tensors, strict=True))
    assert all(a.name == b.name for a, b in pairs)
    differ = {a.name for a, b in pairs if not np.array_equal(a.data, b.data)}
    assert differ == {"blk.0.attn_q.weight", "blk.1.ffn_up.weight"}
    for name, each in moved.items():  # of a file that is laid out in another way
        wrong = {name: replace(each, before=each.before + 1)}
        with pytest.raises(ModelError, match="is laid out otherwise than"):
            write_tuned_gguf(tmp_path / "wrong", base, wrong, names)


def test_what_has_no_place_is_refused_by_name(bundle, source, tuned, tmp_path):
    assert bundle.text_head is not None
    outputs, inputs = bundle.text_head.outputs, bundle.text_head.inputs
    weights = np.ones(outputs * inputs, np.float32)
    part = restored(kinds_of(bundle), text_part.describe(outputs, inputs, 0, 0), weights)
    headed = tmp_path / "headed.safetensors"
    export_values(headed, Values(bundle.values.astype(np.float32), part), bundle, step=3)
    out = tmp_path / "out"
    for to in ("peft", "gguf"):
        told = bad(8, "merge", bundle.path, source, out, "--to", to, "--values", headed)
        assert "learned a text head" in told and "--to hf writes it" in told
    told = bad(8, "merge", bundle.path, source, out, "--to", "onnx", "--values", tuned)
    assert "unknown form; known: hf, peft, gguf" in told
    assert not out.exists()


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    bundle, source, tuned, tmp_path
):
    import shutil

    copy = tmp_path / "hf"
    shutil.copytree(source, copy)
    told = json.loads((copy / "tokenizer.json").read_text())
    told["pre_tokenizer"]["add_prefix_space"] = True
    (copy / "tokenizer.json").write_text(json.dumps(told))
    out = tmp_path / "out.gguf"
    found = bad(8, "merge", bundle.path, copy, out, "--to", "gguf", "--values", tuned)
    assert "its tokenizer is none of" in found and "convert_hf_to_gguf.py" in found
    assert not out.exists()
