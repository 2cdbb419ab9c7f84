"""``seedtune bench paper``: what the source paper claims, on what runs here.

Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity" (arXiv 2406.02913): (1) tuning
0.1 % of the weights by forward passes does as well as tuning all of them, if the 0.1 % are the
sensitive ones; (2) 4-bit weights around them cost little; (3) public text finds them as well as the
task's own; (4) a step is faster, and takes less memory.

Runs are cells of ``bench quality``: at equal forwards, seeds alone, without readout or directions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contenders.task_methods import MASKS
from .measuring.results_files import RESULTS, read_figures, say, write_figures
from .measuring.tuning_run import Progress
from .quality import bench_quality
from .summaries.paper import FILE, FORWARDS, claims_of, show_paper, summarise_paper
from .summaries.quality import DECIDING
from .summaries.rows import read_rows
from .summaries.senders import FILE as SENDERS

__all__ = ["bench_paper", "show_paper"]


def bench_paper(
    *,
    seeds: tuple[int, ...] = (0,),
    forwards: int = FORWARDS,
    bundle: Path | None = None,
    threads: int | None = None,
    results: Path = RESULTS,
    summary: bool = False,
    progress: Progress = say,
) -> dict[str, Any]:
    """Run what claims 1 to 3 lack, and write the table of all four.

    Args:
        forwards: of each run.
        bundle: exported program and mask; by default the quickstart's.
        summary: compute nothing, read the committed results of all benchmarks.

    Returns:
        ``claims`` (see ``summaries.paper.claims_of``) and the figures of
        ``summaries.paper.summarise_paper``.

    Raises:
        SeedtuneError: what a run raises, or a damaged file of results.
    """
    device = read_figures("device", results)
    if not summary:
        # Written as it grows: what an interrupt leaves is the table of what is done.
        for method in ("", *(f"{mask}-mask-fp32" for mask in MASKS), "int4-per-example"):
            if method:
                bench_quality(
                    methods=(method,),
                    tasks=(DECIDING,),
                    seeds=seeds,
                    forwards=forwards,
                    bundle=bundle,
                    threads=threads,
                    results=results,
                    progress=progress,
                )
            claims = claims_of(read_rows(results), device, forwards)
            write_figures(FILE, {"forwards": forwards, "claims": claims}, results)
    rows = read_rows(results)
    figures = summarise_paper(rows, read_rows(results, SENDERS), device)
    return {"claims": claims_of(rows, device, forwards), **figures}
