"""A GGUF file becomes a folder tensor by tensor."""

import weakref
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from seedtune.export.gguf_file import GgufNames
from seedtune.export.gguf_model import write_gguf_model
from seedtune.export.model import dequantise as module
from seedtune.export.model.dequantise import dequantise
from seedtune.export.model.load_model import load_causal_lm
from seedtune.runtime.errors import ModelError
from tiny_model import write_tiny_llama

Q8 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The tiny Llama as llama.cpp would have it, its matrices in blocks of 8 bits."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("hf"))
    plain = folder / "plain.gguf"
    write_gguf_model(plain, load_causal_lm(folder), folder / "work")
    return blocks_of(plain, folder / "model.gguf")


def blocks_of(plain, file, without=""):
    read = gguf.GGUFReader(plain)
    writer = gguf.GGUFWriter(file, "llama")
    for field in read.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in read.tensors:
        if tensor.name == without:
            continue
        if tensor.data.ndim == 2:
            writer.add_tensor(tensor.name, gguf.quantize(tensor.data, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


def test_weights_are_those_of_the_blocks(source, made):
    dequantise(source, made)
    found = load_file(made / "model.safetensors")
    loaded = load_causal_lm(source.parent)
    names = GgufNames(loaded.model.config)
    tensors = {each.name: each for each in gguf.GGUFReader(source).tensors}
    assert len(tensors) == len(found) == 2 * 9 + 3
    for name, weight in found.items():
        module_name, _, kind = name.rpartition(".")
        tensor = tensors[names.tensor(module_name, kind)]
        rows = gguf.dequantize(tensor.data, tensor.tensor_type)
        order = names.rows(module_name, len(rows))
        assert np.array_equal(rows, weight.numpy()[order]), name
    same = load_causal_lm(made)
    assert same.model.config.architectures == ["LlamaForCausalLM"]
    assert same.tokenizer("9 cats")["input_ids"] == loaded.tokenizer("9 cats")["input_ids"]


def test_it_is_done_once_and_in_silence(source, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
    first = load_causal_lm(source)
    assert capfd.readouterr() == ("", "")
    (folder,) = (tmp_path / "models").iterdir()
    kept = {each: each.stat().st_mtime_ns for each in folder.iterdir()}
    again = load_causal_lm(source)
    assert kept == {each: each.stat().st_mtime_ns for each in folder.iterdir()}
    assert first.sha256 == again.sha256 == load_causal_lm(folder).sha256
    weights, same = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(weight, same[name]) for name, weight in weights.items())


def test_one_tensor_is_there_at_a_time(source, made, monkeypatch):
    alive: list[weakref.ref[Any]] = []
    most, write, unpack = 0, module.TensorFile.write, module._Unpacked.__getitem__

    def unpacked(self, all_of_it):
        found = unpack(self, all_of_it)
        alive.append(weakref.ref(found.untyped_storage()))
        return found

    def written(self, name, data):
        nonlocal most
        most = max(most, sum(each() is not None for each in alive))
        write(self, name, data)

    monkeypatch.setattr(module._Unpacked, "__getitem__", unpacked)
    monkeypatch.setattr(module.TensorFile, "write", written)
    dequantise(source, made)
    assert len(alive) == 21
    assert most <= 2


def test_a_missing_tensor_is_named(source, made, tmp_path):
    file = blocks_of(source.parent / "plain.gguf", tmp_path / "m.gguf", "blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"m\.gguf: lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        dequantise(file, made)
