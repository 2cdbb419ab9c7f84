import json
import shutil
import subprocess
import sys

import pytest
import torch
from hub_stand_in import ask, running_hub
from safetensors.torch import load_file, save_file
from seedtune.export.model.load_model import load_causal_lm
from seedtune.export.model.shape import read_shape
from seedtune.runtime.errors import DownloadError, ModelError


@pytest.fixture
def folder(tiny_llama_folder, tmp_path):
    return shutil.copytree(tiny_llama_folder, tmp_path / "tiny")


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_folder_is_loaded_frozen_in_evaluation_mode(tiny_llama_folder):
    loaded = load_causal_lm(str(tiny_llama_folder))
    assert loaded.name == "tiny-llama"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    stored = load_file(tiny_llama_folder / "model.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_tokenizer_json_is_the_tokenizer(tiny_llama_folder):
    from tokenizers import Tokenizer

    loaded = load_causal_lm(tiny_llama_folder)
    backend = Tokenizer.from_str(loaded.tokenizer_json.decode())
    text = "The cat was great."
    assert backend.encode(text).ids == loaded.tokenizer(text)["input_ids"]


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_another_model_s(folder):
    tokenizer = load_causal_lm(folder).tokenizer
    tokenizer.add_tokens([f"new{n}" for n in range(100)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"has \d+ tokens, the model only \d+; it is another"):
        load_causal_lm(folder)


def test_dtype_is_respected_and_does_not_change_the_hash(tiny_llama_folder):
    half = load_causal_lm(tiny_llama_folder, torch.bfloat16)
    assert half.model.lm_head.weight.dtype == torch.bfloat16
    assert half.sha256 == load_causal_lm(tiny_llama_folder).sha256


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rms_norm_eps", 1e-5),
        ("rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}),
        ("rope_theta", 5e5),
        ("hidden_act", "gelu"),
        ("num_attention_heads", 2),
    ],
)
def test_configuration_that_changes_the_function_belongs_to_the_hash(folder, field, value):
    before = load_causal_lm(folder).sha256
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if field == "rope_theta":  # as checkpoints of before had it
        del config["rope_parameters"]
    if field == "num_attention_heads":
        config |= {"head_dim": 16, "num_key_value_heads": 1}
    file.write_text(json.dumps(config | {field: value}))
    assert load_causal_lm(folder).sha256 != before


def test_configuration_without_a_part_in_a_pass_does_not(folder):
    before = load_causal_lm(folder).sha256
    file = folder / "config.json"
    config = json.loads(file.read_text())
    odd = {
        "use_cache": False,
        "attention_dropout": 0.5,
        "initializer_range": 0.5,
        "eos_token_id": 2,
        "transformers_version": "4.1",
        "_name_or_path": "elsewhere",
    }
    file.write_text(json.dumps(config | odd))
    assert load_causal_lm(folder).sha256 == before
    del config["mlp_bias"], config["attention_bias"]  # what it would be without
    file.write_text(json.dumps(config))
    assert load_causal_lm(folder).sha256 == before


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [-1, 0, "two", None])
def test_sizes_that_no_model_has(folder, field, value):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    for read in (load_causal_lm, read_shape):
        with pytest.raises(ModelError) as told:
            read(folder)
        assert str(told.value).startswith(f"{folder}: ") and "\n" not in str(told.value)
        if value == -1 and field == "num_hidden_layers":
            assert "config.json has num_hidden_layers -1, must be at least 1" in str(told.value)


def test_hash_follows_weights_not_sharding(folder):
    before = load_causal_lm(folder).sha256
    load_causal_lm(folder).model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert load_causal_lm(folder).sha256 == before
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, file, {"format": "pt"})
        break
    assert load_causal_lm(folder).sha256 != before


def test_code_in_a_folder_is_neither_run_nor_asked_about(folder, monkeypatch):
    marker = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    for read in (load_causal_lm, read_shape):
        with pytest.raises(ModelError, match="tiny: cannot"):
            read(folder)
    assert not marker.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_layer(folder, bad):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = bad

    rewrite(folder, spoil)
    with pytest.raises(ModelError, match=r"layer model\.layers\.1\.mlp\.up_proj "):
        load_causal_lm(folder)


def test_large_finite_weights_are_accepted(folder):
    def grow(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][:] = 3e38

    rewrite(folder, grow)  # their sum overflows
    load_causal_lm(folder)


def test_missing_weight_is_refused_instead_of_made_up(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"))
    with pytest.raises(ModelError, match=r"lack model\.layers\.0\.self_attn\.q_proj\.weight"):
        load_causal_lm(folder)


def test_truncated_weights_are_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal_lm(folder)


def test_folder_without_model_or_weights(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load_causal_lm(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_causal_lm(tmp_path / "empty")


def test_unknown_architecture_is_one_line(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_causal_lm(folder)
    assert "\n" not in str(caught.value)


def test_file_that_is_no_gguf(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="not a GGUF file"):
        load_causal_lm(tmp_path / "model.bin")
    (tmp_path / "model.gguf").write_bytes(b"not gguf at all")
    with pytest.raises(ModelError, match="GGUF magic"):
        load_causal_lm(tmp_path / "model.gguf")


def test_truncated_gguf_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match=r"model\.gguf: cannot be dequantised"):
        load_causal_lm(tmp_path / "model.gguf")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in of the hub, and an empty cache."""
    with running_hub() as found:
        ask(monkeypatch, found, tmp_path / "hf")
        yield found


def test_a_model_on_the_hub_is_loaded_and_says_of_which_commit(hub, tiny_llama_folder):
    files = {file.name: file.read_bytes() for file in tiny_llama_folder.iterdir()}
    below = {f"sub/{name}": data for name, data in files.items()}
    extra = {"README.md": b"", "onnx/model.onnx": b"x", "fp32/model.safetensors": b"x"}
    repository = hub.add("models/org/name", {**files, **below, **extra})
    (commit,) = repository.commits
    here = load_causal_lm(tiny_llama_folder)
    for source, path in (
        ("org/name", ""),
        ("hf://org/name", ""),
        ("hf://org/name@main/sub", "/sub"),
    ):
        found = load_causal_lm(source)
        assert (found.name, found.sha256) == ("org/name", here.sha256)
        assert found.origin == f"hf://org/name@{commit}{path}"
    assert not hub.gets(".onnx") and not hub.gets("fp32/model.safetensors")
    assert read_shape("hf://org/name").name == "org/name" and here.origin is None


def test_the_shape_of_a_model_on_the_hub_needs_no_weights(hub, tiny_llama_folder):
    hub.add("models/org/name", tiny_llama_folder)
    assert read_shape("org/name").blocks == read_shape(tiny_llama_folder).blocks
    assert not hub.gets(".safetensors")


def test_a_model_that_the_hub_does_not_have(hub):
    for source in ("org/name", "hf://org/name/model.gguf"):
        with pytest.raises(DownloadError, match=r"hf://org/name.*: no such repository") as caught:
            load_causal_lm(source)
        assert "\n" not in str(caught.value)
    hub.add("models/org/packed", {"README.md": "nothing", "q4.gguf": b"GGUF"})
    with pytest.raises(DownloadError, match=r"no \*\.json or .* there; there are: .*q4\.gguf"):
        load_causal_lm("org/packed")
    with pytest.raises(ModelError, match=r"q4\.gguf: cannot be dequantised"):
        load_causal_lm("hf://org/packed/q4.gguf")


def test_half_a_model_is_not_taken_for_a_whole(hub, tiny_llama_folder, monkeypatch):
    """Without a part that a model can be loaded without, such as its generation settings."""
    import huggingface_hub.file_download as client

    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    files = hub.add("models/org/name", tiny_llama_folder).files
    files["generation_config.json"] = b'{"eos_token_id": 5}'
    hub.cuts["generation_config.json"] = [0] * 20
    with pytest.raises(DownloadError, match="check the connection and try again"):
        load_causal_lm("org/name")
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        load_causal_lm("org/name")
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", False)
    hub.cuts.clear()
    assert 5 in load_causal_lm("org/name").end_ids


@pytest.mark.parametrize("source", ["../nowhere/at/all", "/no/such/folder", ""])
def test_path_that_does_not_exist_is_not_taken_for_a_hub_id(source):
    with pytest.raises(ModelError):
        load_causal_lm(source)


def test_loading_prints_nothing(tiny_llama_folder):
    """In a fresh process, since the libraries complain when they are imported."""
    script = "import sys; from seedtune.export.model.load_model import load_causal_lm as load"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; load(sys.argv[1])", str(tiny_llama_folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_quiet_gives_stderr_back():
    from seedtune.export.quiet import quiet

    before = sys.stderr
    with pytest.raises(ValueError), quiet():
        assert sys.stderr is not before
        raise ValueError
    assert sys.stderr is before


@pytest.mark.slow
def test_smollm2_predicts_english(smollm2):
    text = "The capital of France is Paris. The sun rises in the east and sets in the west."
    tokens = torch.tensor([smollm2.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        loss = smollm2.model(input_ids=tokens, labels=tokens).loss
    assert float(loss.exp()) < 20
