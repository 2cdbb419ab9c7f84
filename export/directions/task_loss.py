"""The loss of a task's examples in PyTorch, to be differentiated."""

import torch
from seedtune.runtime.tasks import Batch, Task
from seedtune.runtime.tasks.classification import Classification
from seedtune.runtime.tasks.multiple_choice import MultipleChoice
from torch.nn.functional import cross_entropy


def task_losses(task: Task, logp: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What ``task.losses`` computes for one probe, with label words as the objective.

    Args:
        logp: log-probabilities ``[N, C]`` of the batch's candidates.

    Returns:
        ``[examples]``.
    """
    gold = torch.from_numpy(batch.gold)
    if isinstance(task, Classification):
        return cross_entropy(logp, gold, reduction="none")
    rows = torch.from_numpy(batch.row_of)
    sums = torch.zeros(len(batch.tokens)).index_add(0, rows, logp[:, 0])
    means = sums / torch.bincount(rows, minlength=len(sums))
    if isinstance(task, MultipleChoice):
        return cross_entropy(means.view(batch.examples, -1), gold, reduction="none")
    return -means
