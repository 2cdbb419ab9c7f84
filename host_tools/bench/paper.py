"""``seedtune bench paper``: what the source paper claims, on what runs here.

Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity" (arXiv 2406.02913): (1) tuning
0.1 % of the weights by forward passes does as well as tuning all of them, if the 0.1 % are the
sensitive ones; (2) 4-bit weights around them cost little; (3) public text finds them as well as the
task's own; (4) a step is faster, and takes less memory.

It measures nothing: runs are cells of ``bench quality``, at equal forwards and by seeds alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .measuring.results_files import RESULTS, read_figures
from .summaries.paper import FORWARDS, claims_of, show_paper, summarise_paper
from .summaries.rows import read_rows
from .summaries.senders import FILE as SENDERS

__all__ = ["bench_paper", "show_paper"]


def bench_paper(
    *, forwards: int = FORWARDS, results: Path = RESULTS, summary: bool = True
) -> dict[str, Any]:
    """The table of all four claims, from the committed results of all benchmarks.

    Args:
        forwards: of each run.
        summary: it can do nothing else.

    Returns:
        ``claims`` (see ``summaries.paper.claims_of``) and the figures of
        ``summaries.paper.summarise_paper``.

    Raises:
        SeedtuneError: a damaged file of results.
    """
    device, rows = read_figures("device", results), read_rows(results)
    figures = summarise_paper(rows, read_rows(results, SENDERS), device)
    return {"claims": claims_of(rows, device, forwards), **figures}
