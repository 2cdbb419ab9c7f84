"""``score`` for engines that read a prefix with the same graph: it takes keys and values of what
stands in front of every row, and returns those of the rows themselves."""

import torch
from torch import nn

from .score_program import ScoreProgram


class PrefixProgram(nn.Module):
    """``score(tokens, positions, candidates, values, adapter, kept [Q], prefix)``.

    ``prefix`` is as in ``ScoreProgram``; its L may be 0. Behind the results of ``score`` come the
    pass's own keys and values at ``kept``, flat as ``positions`` are: block by block keys
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
        *prefix: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        self.score.layout.keep(kept)
        try:
            logp, hidden = self.score(tokens, positions, candidates, values, adapter, *prefix)
        finally:
            own = self.score.layout.take()
        return (logp, hidden, *own)
