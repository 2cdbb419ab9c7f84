"""The engine's contract in plain PyTorch: what the float32 baselines are scored with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from seedtune.export.program.block_tap import shares_so_far, tapped_blocks, unit_mean_square
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.tasks import Batch

Places = dict[str, NDArray[np.int64]]
"""Flat indices of weights by the name of their linear layer."""


class TorchEngine(Engine):
    """``Engine`` over a transformers causal model as it stands, in the model's own dtype.

    Only the hidden states that are asked for go through the head. Rows are padded on the right, and
    attention is causal, so that no mask is needed.

    Args:
        model: its weights are overwritten at ``places`` by every call.
        places: where ``values`` stand in the model, in this order; without it, K is 0 and the
            model is scored as it is.
        hidden: return hidden states too, which costs some time outside the model.
    """

    def __init__(self, model: Any, places: Places | None = None, *, hidden: bool = False) -> None:
        count = model.config.num_hidden_layers
        self._blocks, self._mean_blocks = tapped_blocks(count) if hidden else ([], [])
        self._layers = next(
            m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count
        )
        self.hidden_width = (len(self._blocks) + len(self._mean_blocks)) * int(
            model.config.hidden_size
        )
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        self._places = [
            (model.get_submodule(name).weight.detach().view(-1), torch.tensor(flat))
            for name, flat in (places or {}).items()
        ]
        self.entries = sum(len(flat) for _, flat in self._places)

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 ``[K]``, a copy of the model's weights at ``places``."""
        parts = [weight[flat].numpy() for weight, flat in self._places]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
    ) -> Scores:
        """As ``Engine.score``, without an adapter; one forward a row of ``values``."""
        assert adapter is None
        tokens, positions, candidates = map(
            torch.from_numpy, (batch.tokens, batch.positions, batch.candidates)
        )
        shares = shares_so_far(positions, *tokens.shape) if self._mean_blocks else None
        logp, hidden = [], []
        with torch.inference_mode(), self._tapped() as seen:
            for row in values:
                self.put(row)
                logp.append(self.log_probabilities(tokens, positions, candidates).numpy())
                if self.hidden_width:
                    states = [seen[below][positions] for below in self._blocks]
                    states += [shares @ seen[below] for below in self._mean_blocks]
                    hidden.append(torch.cat([*map(unit_mean_square, states)], dim=-1).numpy())
        return Scores(np.stack(logp), np.stack(hidden) if hidden else None)

    @contextmanager
    def _tapped(self) -> Iterator[dict[int, torch.Tensor]]:
        """Filled by each forward: states ``[B * T, width]`` by the number of blocks below.

        Not by output_hidden_states, whose last one is behind the final norm.
        """
        seen: dict[int, torch.Tensor] = {}

        def keep(module: Any, arguments: Any, output: Any, below: int) -> None:
            seen[below] = (output[0] if isinstance(output, tuple) else output).flatten(0, 1)

        handles = [
            self._layers[below - 1].register_forward_hook(partial(keep, below=below))
            for below in {*self._blocks, *self._mean_blocks}
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def log_probabilities(
        self, tokens: torch.Tensor, positions: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        """``[N, C]`` under the weights as they are; may be differentiated."""
        hidden = self._body(tokens, use_cache=False).last_hidden_state.flatten(0, 1)
        return torch.log_softmax(self._head(hidden[positions]), dim=-1).gather(1, candidates)

    def put(self, row: NDArray[np.float32]) -> None:
        """Set the model's weights at ``places`` to ``row`` (float32 ``[K]``)."""
        first = 0
        for weight, flat in self._places:
            weight[flat] = torch.from_numpy(row[first : first + len(flat)])
            first += len(flat)
