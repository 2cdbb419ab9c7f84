"""The engine's contract in plain PyTorch: what the float32 baselines are scored with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from seedtune.runtime.engines import Engine, Scores, Terms
from seedtune.runtime.tasks import Batch

Places = dict[str, NDArray[np.int64]]
"""Flat indices of weights by the name of their linear layer."""


class FloatEngine(Engine):
    """``Engine`` over a transformers causal model as it stands, in the model's own dtype.

    Only the hidden states that are asked for go through the head. Rows are padded on the right, and
    attention is causal, so that no mask is needed.

    Args:
        model: its weights are overwritten at ``places`` by every call.
        places: where ``values`` stand in the model, in this order; without it, K is 0 and the
            model is scored as it is.
    """

    hidden_width = 0

    def __init__(self, model: Any, places: Places | None = None) -> None:
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
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        """As ``Engine.score``, without an adapter or terms; one forward a row of ``values``."""
        assert adapter is None and not terms and not inside
        tokens, positions, candidates = map(
            torch.from_numpy, (batch.tokens, batch.positions, batch.candidates)
        )
        logp = []
        with torch.inference_mode():
            for row in values:
                self.put(row)
                logp.append(self.log_probabilities(tokens, positions, candidates).numpy())
        return Scores(np.stack(logp), None)

    def log_probabilities(
        self, tokens: torch.Tensor, positions: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        """``[N, C]`` under the weights as they are; may be differentiated."""
        hidden = self._body(tokens, use_cache=False).last_hidden_state.flatten(0, 1)
        return torch.log_softmax(self._head(hidden[positions]), dim=-1).gather(1, candidates)

    def close(self) -> None:
        """The model is the caller's."""

    def put(self, row: NDArray[np.float32]) -> None:
        """Set the model's weights at ``places`` to ``row`` (float32 ``[K]``)."""
        first = 0
        for weight, flat in self._places:
            weight[flat] = torch.from_numpy(row[first : first + len(flat)])
            first += len(flat)
