"""A model that computes in float32 while its large weights stay as they are stored."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .stored_weight import keep_stored_
from .tensor_file import read_header

_FORMATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The number format of all tensors in safetensors ``files``; float32 if there are several, or
    where a file has another form, since then tensors are not mapped as they are."""
    found = set()
    for file in files:
        if file.suffix != ".safetensors":
            return torch.float32
        found |= {entry["dtype"] for entry in read_header(file)[0].values()}
    return _FORMATS.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def keep_stored(model: Any) -> Any:
    """The transformers model ``model`` once more, with the same weights, of any float format: those
    of linear layers and of the embedding are made float32 at each use, the others are float32.

    It is built anew since what is derived from a configuration, as rotary frequencies are, was
    rounded to the format of ``model``.
    """
    with _weights_without_memory():
        found = type(model)(model.config)
    found.generation_config = model.generation_config
    found.load_state_dict(model.state_dict(), assign=True, strict=False)
    found.tie_weights()
    table = found.get_input_embeddings()
    for module in list(found.modules()):
        if isinstance(module, nn.Linear) or module is table:
            keep_stored_(module)
    for tensor in (*found.parameters(), *found.buffers()):
        if tensor.is_floating_point():
            # A copy, since one norm in use would keep all of its file mapped.
            tensor.data = tensor.data.to(torch.float32, copy=True)
    return found


@contextmanager
def _weights_without_memory() -> Iterator[None]:
    """Inside, parameters of new modules have a shape alone; buffers are made as ever."""
    plain = nn.Module.register_parameter

    def bare(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        plain(self, name, param)

    nn.Module.register_parameter = bare  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]
