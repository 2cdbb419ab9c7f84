"""The hidden state that a readout sees: the residual stream two thirds of the way up.

What a text is about stands clearest in the middle of a decoder; its last blocks turn that into the
next token. SmolLM2 in float32, SST-2's prompt, a linear readout of the last token fitted to 500
sentences, by the number of blocks below it: 12 of 30: 66 %, 15: 83 %, 18: 83 %, 20: 83 %,
22: 83 %, 25: 81 %, 30: 79 %; spam: 97 to 98 % from 18 on. Two layers side by side gave one point
more for twice the numbers. (MeZO's linear probing, arXiv 2305.17333 table 1, reads the last.)
"""

from typing import Any

import torch
from seedtune.runtime.errors import ModelError
from torch import nn

DEPTH = 2 / 3


class BlockTap:
    """Keeps what one decoder block returns in the running forward pass."""

    def __init__(self, model: Any) -> None:
        """Hook the block of ``model`` at ``DEPTH``.

        Raises:
            ModelError: the model has no list of its ``num_hidden_layers`` decoder blocks.
        """
        count = model.config.num_hidden_layers
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        if not lists:
            raise ModelError(f"{type(model).__name__} has no list of {count} decoder blocks")
        self.blocks = max(1, round(count * DEPTH))
        """Blocks below the tapped state."""
        self._seen: list[torch.Tensor] = []
        lists[0][self.blocks - 1].register_forward_hook(self._keep)

    def take(self) -> torch.Tensor:
        """The pass's hidden states, ``[P, B * T, D]``; forgets them."""
        return self._seen.pop()

    def _keep(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._seen[:] = [output[0] if isinstance(output, tuple) else output]
