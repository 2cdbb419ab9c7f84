"""How well the next word is known: perplexity, and how often it is among the likeliest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.scoring.batch_loss import passes
from seedtune.runtime.tasks import Batch, Encoded, Task

Words = tuple[NDArray[np.float64], NDArray[np.int64]]
"""For each position: the log-probability of the word that came, and how many were likelier."""
Score = Callable[[Batch], Words]


def measure(score: Score, batches: Iterable[Batch]) -> dict[str, float]:
    """Over all positions of ``batches``.

    Returns:
        ``perplexity``; ``top1`` and ``top3``: shares of positions whose word is the likeliest, and
        among the three likeliest; ``tokens``: how many positions there are.
    """
    return figures([score(batch) for batch in batches])


def figures(found: Sequence[Words]) -> dict[str, float]:
    """As ``measure``, of what a score gave."""
    logp, ranks = (np.concatenate(part) for part in zip(*found, strict=True))
    return {
        "perplexity": math.exp(-float(logp.mean())),
        "top1": float((ranks < 1).mean()),
        "top3": float((ranks < 3).mean()),
        "tokens": len(logp),
    }


def message_batches(task: Task, examples: Sequence[Encoded], bounds: Bounds) -> Iterator[Batch]:
    """Batches of messages, their own tokens to be scored."""
    for _, batch in passes(task, examples, bounds):
        yield batch


def torch_score(model: Any) -> Score:
    """The score of a transformers causal model as it stands."""
    import torch

    @torch.inference_mode()
    def score(batch: Batch) -> Words:
        states = model.base_model(torch.from_numpy(batch.tokens), use_cache=False)
        hidden = states.last_hidden_state.flatten(0, 1)[torch.from_numpy(batch.positions)]
        return ranked(model.get_output_embeddings()(hidden), batch)

    return score


def ranked(logits: Any, batch: Batch) -> Words:
    """Next words by logits ``[N, V]``, a tensor."""
    import torch

    wanted = torch.from_numpy(batch.candidates[:, :1])
    own = logits.gather(1, wanted)
    logp = (own - torch.logsumexp(logits, dim=1, keepdim=True))[:, 0]
    return logp.double().numpy(), (logits > own).sum(dim=1).numpy()
