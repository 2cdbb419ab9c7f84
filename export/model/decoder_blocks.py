"""The blocks of a decoder, from the first to the last."""

from typing import Any

from seedtune.runtime.errors import ModelError
from torch import nn


def decoder_blocks(model: Any) -> nn.ModuleList:
    """The list of the ``num_hidden_layers`` blocks of ``model``.

    Raises:
        ModelError: it has none.
    """
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__} has no list of {count} decoder blocks")
