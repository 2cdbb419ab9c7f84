"""A GGUF file as a Hugging Face folder of float32 weights, tensor by tensor.

transformers would hold all of them, and once more when it saves them. It still does the reading;
but each tensor goes into the folder's file where the model would keep it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError

from ..quiet import first_line, quiet
from .mapped_pages import forget_bytes
from .tensor_file import Kind, TensorFile

_PIECE = 4096
"""Rows."""


def dequantise(file: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer of ``file`` to the empty ``folder``.

    Raises:
        ModelError: transformers cannot read it, or it lacks a weight.
        OSError: ``folder`` cannot be written.
    """
    with quiet():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            with _kept_in(folder / "model.safetensors"):
                found: Any = AutoModelForCausalLM.from_pretrained(
                    file.parent,
                    gguf_file=file.name,
                    dtype=torch.float32,
                    output_loading_info=True,
                    local_files_only=True,
                    trust_remote_code=False,
                )
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises many kinds; all mean "cannot be read"
            raise ModelError(f"{file}: cannot be dequantised: {first_line(error)}") from error
        model, info = found
        missing = sorted(info["missing_keys"])
        if missing:
            raise ModelError(f"{file}: lacks {missing[0]} ({len(missing)} missing)")
        # transformers still takes the float32 weights for quantised ones.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


class _Unpacked:
    """A tensor of a file, made float32 when transformers asks for it."""

    def __init__(self, tensor: Any, process: Callable[..., Any]) -> None:
        self._tensor, self._process = tensor, process

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, all_of_it: Any) -> torch.Tensor:
        from gguf import dequantize

        data, kind = self._tensor.data, self._tensor.tensor_type
        weights = np.empty(tuple(map(int, reversed(self._tensor.shape))), np.float32)
        # In pieces: it makes another copy of what it is given.
        for first in range(0, len(data), _PIECE):
            piece = data[first : first + _PIECE]
            weights[first : first + _PIECE] = dequantize(piece, kind)
            forget_bytes(piece.ctypes.data, piece.nbytes)
        return torch.from_numpy(np.ascontiguousarray(self._process(weights, self._tensor.name)))


def _unpacked(file: Path, model: Any) -> dict[str, _Unpacked]:
    """The tensors of ``file`` under the names that they have in the transformers ``model``."""
    from gguf import GGUFReader
    from transformers import modeling_gguf_pytorch_utils

    theirs: Any = modeling_gguf_pytorch_utils
    read = GGUFReader(file)
    config = theirs.load_gguf_checkpoint(file)["config"]
    kind = theirs.read_field(read, "general.architecture")[0]
    processor = theirs.TENSOR_PROCESSORS.get(kind, theirs.TensorProcessor)(config=config)
    names = theirs.get_gguf_hf_weights_map(model, processor)

    def process(weights: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
        found = processor.process(
            weights=weights,
            name=name,
            tensor_key_mapping=names,
            parsed_parameters={"config": config, "tensors": {}},
        )
        if found.name != name:  # of a mixture of experts
            raise ValueError(f"tensor {name} is a part of another")
        weights = found.weights
        return weights

    return {
        names[each.name]: _Unpacked(each, process) for each in read.tensors if each.name in names
    }


@contextmanager
def _kept_in(file: Path) -> Iterator[None]:
    """Inside, weights that transformers loads go into ``file``, and none stays in its model."""
    from transformers import core_model_loading
    from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

    give, read = core_model_loading.set_param_for_module, GgufHfQuantizer.get_state_dict
    load = core_model_loading.spawn_materialize
    written: TensorFile | None = None

    def keep(model: Any, name: str, value: torch.Tensor, *rest: Any) -> None:
        nonlocal written
        if written is None:
            tied = set(model.all_tied_weights_keys)
            own = {key: each for key, each in model.state_dict().items() if key not in tied}
            kinds = {key: Kind(torch.float32, tuple(each.shape)) for key, each in own.items()}
            written = TensorFile(file, kinds, {"format": "pt"})
        written.write(name, value.numpy())
        give(model, name, torch.zeros(1).expand(value.shape), *rest)

    def when_asked(pool: Any, *tensor: Any, **more: Any) -> Any:
        return load(None, *tensor, **more)  # threads would read ahead, up to the whole file

    def tensors(quantizer: Any, source: Any, model: Any) -> Any:
        return read(quantizer, source, model) if quantizer.supported else _unpacked(source, model)

    try:
        with (
            patch.object(GgufHfQuantizer, "get_state_dict", tensors),
            patch.object(core_model_loading, "set_param_for_module", keep),
            patch.object(core_model_loading, "spawn_materialize", when_asked),
        ):
            yield
    finally:
        if written is not None:
            written.close()
