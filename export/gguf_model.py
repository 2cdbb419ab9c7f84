"""A whole model as a GGUF file, from what transformers loaded.

Llama, Mistral, Qwen2 and Qwen3 with a byte-level tokenizer whose way to cut a text llama.cpp knows.
What else there is, llama.cpp's own ``convert_hf_to_gguf.py`` makes of a checkpoint.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seedtune.runtime.errors import ModelError

from .gguf_file import ELSE, GgufNames, write_tensors
from .model.load_model import LoadedModel

_MODELS = ("llama", "mistral", "qwen2", "qwen3")
_WORDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
_CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (f"{_WORDS}\\p{{N}}{{1,3}}{_REST}", "ByteLevel"): "llama-bpe",
    (f"{_WORDS}\\p{{N}}{_REST}", "ByteLevel"): "qwen2",
}
"""llama.cpp's name of how a tokenizer cuts a text before it merges bytes, by its steps."""


def write_gguf_model(file: Path, loaded: LoadedModel, work: Path) -> None:
    """Write a model.

    Matrices keep the model's number format; vectors are float32.

    Args:
        work: an empty folder of one's own.

    Raises:
        ModelError: llama.cpp would read this model, or its texts, otherwise.
        OSError: it cannot be written.
    """
    import gguf

    config = loaded.model.config
    if config.model_type not in _MODELS:
        raise ModelError(
            f"a model of type {config.model_type} is written as GGUF only from a GGUF file; {ELSE}"
        )
    names = GgufNames(config)
    writer = gguf.GGUFWriter(file, names.architecture)
    writer.add_name(loaded.name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    _add_tokenizer(writer, loaded, work)
    tensors = dict(_tensors(loaded.model, names))
    tensors |= _positions(writer, loaded.model, width)
    for name, tensor in tensors.items():
        dtype = np.dtype(np.float16 if tensor.dtype is torch.float16 else np.float32)
        writer.add_tensor_info(name, tuple(tensor.shape), dtype, tensor.numel() * dtype.itemsize)
    write_tensors(writer, (tensor.numpy() for tensor in tensors.values()))


def _tensors(model: Any, names: GgufNames) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module == "lm_head" and model.config.tie_word_embeddings:
            continue
        if tensor.ndim == 1:
            tensor = tensor.float()
        order = names.rows(module, len(tensor))
        if not np.array_equal(order, np.arange(len(tensor))):
            tensor = tensor[torch.from_numpy(order)]
        yield names.tensor(module, kind), tensor.contiguous()


def _positions(writer: Any, model: Any, width: int) -> dict[str, torch.Tensor]:
    """How positions rotate: the base, and factors of each frequency where they are scaled.

    Raises:
        ModelError: the scale changes with the text's length.
    """
    rope = model.config.rope_parameters
    base = rope["rope_theta"]
    writer.add_rope_freq_base(base)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise ModelError(f"its positions are scaled in the way {rope['rope_type']!r}; {ELSE}")
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    factors = plain / model.base_model.rotary_emb.inv_freq.float()
    if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5):
        return {}
    return {"rope_freqs.weight": factors}


def _add_tokenizer(writer: Any, loaded: LoadedModel, work: Path) -> None:
    import gguf

    loaded.tokenizer.save_pretrained(work)
    told = json.loads(loaded.tokenizer_json)
    cut = _CUTS.get(_steps(told["pre_tokenizer"]))
    normaliser = (told["normalizer"] or {"type": None})["type"]
    if told["model"]["type"] != "BPE" or cut is None or normaliser not in (None, "NFC"):
        raise ModelError(
            f"{loaded.name}: its tokenizer is none of {', '.join(_CUTS.values())}, {ELSE}"
        )
    kinds = gguf.TokenType
    vocabulary = dict(told["model"]["vocab"])
    special = {}
    for token in told["added_tokens"]:
        vocabulary[token["content"]] = token["id"]
        special[token["id"]] = kinds.CONTROL if token["special"] else kinds.USER_DEFINED
    texts = {number: text for text, number in vocabulary.items()}
    count = loaded.model.config.vocab_size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(count)])
    writer.add_token_types(
        [
            special.get(number, kinds.NORMAL if number in texts else kinds.UNUSED)
            for number in range(count)
        ]
    )
    known = gguf.SpecialVocab(work, load_merges=True, n_vocab=count)
    # What begins a text is what the tokenizer itself puts there.
    begun = loaded.tokenizer("a")["input_ids"][:1] == [loaded.tokenizer.bos_token_id]
    known.add_special_token = {"bos": begun}
    known.add_to_gguf(writer, quiet=True)


def _steps(told: Any) -> tuple[str, ...]:
    """What a pre-tokenizer does, as the keys of ``_CUTS`` say it."""
    if told is None:
        return ()
    if told["type"] == "Sequence":
        return tuple(name for step in told["pretokenizers"] for name in _steps(step))
    if told["type"] == "Split" and told["behavior"] == "Isolated" and not told["invert"]:
        return (str(told["pattern"].get("Regex")),)
    if told["type"] == "ByteLevel" and told["add_prefix_space"]:
        return ("ByteLevel with a space in front",)
    if told["type"] == "Digits" and not told["individual_digits"]:
        return ("Digits in groups",)
    return (str(told["type"]),)
