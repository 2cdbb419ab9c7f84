"""``score`` for engines that read a prefix with the same graph: it takes keys and values of what
stands in front of every row, and returns those of the rows themselves."""

import torch
from torch import nn

from .score_program import ScoreProgram


class PrefixProgram(nn.Module):
    """``score(tokens, positions, candidates, values, adapter, kept [Q], terms, prefix)``.

    ``terms`` and ``prefix`` are as in ``ScoreProgram``; L may be 0. Behind the results of ``score``
    come the pass's own keys and values at ``kept``, flat as ``positions`` are: block by block keys
    ``[P, KV, d, Q]`` and values ``[P, KV, Q, d]``. Q may be 0, so that scoring keeps none.

    It shares every module with ``score``.
    """

    def __init__(self, score: ScoreProgram) -> None:
        super().__init__()
        self.score = score

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        candidates: torch.Tensor,
        values: torch.Tensor,
        adapter: torch.Tensor,
        kept: torch.Tensor,
        *more: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        self.score.layout.keep(kept)
        try:
            found = self.score(tokens, positions, candidates, values, adapter, *more)
        finally:
            own = self.score.layout.take()
        return (*found, *own)
