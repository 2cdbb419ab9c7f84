"""What makes a model this one and no other: its stored weights, and the configuration that changes
what it computes (``rms_norm_eps``, ``rope_theta``, the number of heads)."""

import hashlib
import json
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import ModelError

from .tensor_file import read_header

_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
_NO_PART = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),
    *("initializer_range", "initializer_factor", "pretraining_tp", "quantization_config"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
}
"""Fields without a part in a forward pass outside training."""


def check_config(config: Any, source: str | Path) -> None:
    """Refuse a configuration whose sizes no model has.

    Raises:
        ModelError: it names the field.
    """
    text = config.get_text_config()
    for name in _SIZES:
        size = getattr(text, name, None)
        if type(size) is not int or size < 1:
            raise ModelError(f"{source}: config.json has {name} {size!r:.40}, must be at least 1")


def model_sha256(files: list[Path], config: Any) -> str:
    """SHA-256 (hex) over the tensors in ``files`` and what of ``config`` the model computes by."""
    digest = hashlib.sha256()
    entries: list[tuple[str, str, list[int], Path, int, int]] = []
    for file in files:
        if file.suffix != ".safetensors":
            with file.open("rb") as source:
                digest.update(hashlib.file_digest(source, "sha256").digest())
            continue
        header, first = read_header(file)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            entries.append((name, entry["dtype"], entry["shape"], file, first + begin, end - begin))
    # By name, and without the headers: it does not depend on sharding.
    for name, dtype, shape, file, offset, length in sorted(entries, key=lambda entry: entry[0]):
        digest.update(json.dumps([name, dtype, shape]).encode())
        with file.open("rb") as source:
            source.seek(offset)
            while length > 0:
                block = source.read(min(length, 1 << 20))
                if not block:
                    raise ModelError(f"{file}: truncated at tensor {name}")
                digest.update(block)
                length -= len(block)
    digest.update(json.dumps(_function(config), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _function(config: Any) -> Any:
    """Fields that differ from those of their kind of model. A later transformers that knows more
    fields, or a checkpoint that was saved again with all of them, is no other model."""
    usual = type(config)().to_dict()
    own = {
        name: value
        for name, value in config.to_dict().items()
        if name not in usual or usual[name] != value
    }
    return {"model_type": config.model_type, **_with_part(own)}


def _with_part(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _with_part(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if name not in _NO_PART and "dropout" not in name
    }
