"""The loss of a task's examples in PyTorch, to be differentiated."""

import torch
from seedtune.runtime.tasks import Batch, Task
from torch.nn.functional import cross_entropy


def task_losses(task: Task, logp: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What ``task.losses`` computes for one probe.

    Args:
        logp: log-probabilities ``[N, C]`` of the batch's candidates.

    Returns:
        ``[examples]``.
    """
    rows = torch.from_numpy(batch.row_of)
    sums = torch.zeros(len(batch.tokens), logp.shape[1]).index_add(0, rows, logp)
    means = sums / torch.bincount(rows, minlength=len(sums))[:, None]
    if not task.answers:
        return -means[:, 0]
    # An answer has a column of its example's one row, or a row of its own.
    scores = means.view(batch.examples, task.answers)
    return cross_entropy(scores, torch.from_numpy(batch.gold), reduction="none")
