"""``seedtune bench fidelity``: the exported program against eager int4 and against float32.

The eager int4 model is the very module that was exported, run by PyTorch with torchao's
quantisation; float32 is the model as loaded, with every linear and its embedding whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.engines import open_engine
from seedtune.runtime.scoring.batch_loss import split_batch
from seedtune.runtime.tasks import Batch, encode_rows, task_for

from ..data.calibration import load_calibration
from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..prepare.prepare import Prepared
from ..quickstart import DEFAULT_TASK, MODEL
from .measuring.perplexity import Score, engine_score, perplexity
from .measuring.results_files import RESULTS, say, write_figures
from .programs.eager_program import eager_program
from .programs.variants import quickstart_program


def bench_fidelity(
    *,
    sentences: int = 64,
    held_out: int = 16,
    base: Prepared | None = None,
    threads: int | None = None,
    results: Path = RESULTS,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Compare per-example losses and perplexities.

    Args:
        sentences: test sentences whose label-word losses are compared.
        held_out: sequences of 128 tokens of the calibration text, not seen in profiling.

    Returns:
        ``losses`` (mean of each program), ``differences`` (mean and largest absolute difference of
        an example's loss, for pairs), ``perplexity`` of each program, ``equal_rows`` (whether P
        equal rows of values gave bit-equal losses).
    """
    import torch
    from seedtune.export.model.load_model import load_causal_lm

    if threads:
        torch.set_num_threads(threads)
    base = base or quickstart_program()
    bundle = base.bundle
    loaded = load_causal_lm(str(fetch(MODEL)))
    text = load_calibration(loaded.tokenizer).held_out[:held_out]
    data = load_task(DEFAULT_TASK)
    task = task_for(bundle, data.spec, on_long="truncate")
    examples = encode_rows(task, data.test[:sentences])
    batches = [task.collate(part) for part in split_batch(examples, bundle.bounds)]
    values = bundle.values.astype(np.float32)[None]
    losses: dict[str, NDArray[np.float64]] = {}
    perplexities: dict[str, float] = {}

    def measure(name: str, score: Score) -> None:
        losses[name] = np.concatenate(
            [task.losses(score(batch, values), batch)[0] for batch in batches]
        )
        perplexities[name] = perplexity(score, text, values, bundle.bounds)
        progress(f"{name}: loss {losses[name].mean():.4f}, perplexity {perplexities[name]:.3f}")

    with open_engine(bundle, threads or "auto") as engine:
        score = engine_score(engine)
        measure("exported", score)
        twice = np.repeat(values, bundle.bounds.probes, axis=0)
        equal = all(
            bool((found == found[:1]).all())
            for found in (task.losses(score(batch, twice), batch) for batch in batches)
        )
    measure("fp32", float_score(loaded.model))
    measure("eager int4", eager_score(loaded, base))
    figures = {
        "sentences": len(examples),
        "held_out_tokens": int(text.shape[0] * (text.shape[1] - 1)),
        "losses": {name: float(found.mean()) for name, found in losses.items()},
        "differences": {
            f"{one} - {other}": difference(losses[one], losses[other])
            for one, other in (
                ("exported", "eager int4"),
                ("eager int4", "fp32"),
                ("exported", "fp32"),
            )
        },
        "perplexity": perplexities,
        "equal_rows": {"probes": bundle.bounds.probes, "bit_equal": equal},
        "mask": bundle.manifest["mask"],
        "quantisation": bundle.manifest["quantisation"],
        "bundle_sha256": bundle.sha256,
    }
    return write_figures("fidelity", figures, results)


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """Mean and largest absolute difference, and the signed mean."""
    apart = one - other
    return {
        "mean_absolute": float(np.abs(apart).mean()),
        "largest": float(np.abs(apart).max()),
        "mean": float(apart.mean()),
    }


def float_score(model: Any) -> Score:
    """``score`` of the model as it was loaded; ``values`` are not looked at."""
    import torch

    @torch.no_grad()
    def score(batch: Batch, values: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = model(torch.from_numpy(batch.tokens), use_cache=False).logits.flatten(0, 1)
        logp = torch.log_softmax(logits[torch.from_numpy(batch.positions)], dim=-1)
        chosen = logp.gather(1, torch.from_numpy(batch.candidates))
        found: NDArray[np.float32] = chosen[None].numpy()
        return found

    return score


def eager_score(loaded: Any, base: Prepared) -> Score:
    """``score`` of the module that ``base`` was exported from, in PyTorch; consumes ``loaded``."""
    import torch

    program = eager_program(loaded, base)

    @torch.no_grad()
    def score(batch: Batch, values: NDArray[np.float32]) -> NDArray[np.float32]:
        arguments = (batch.tokens, batch.positions, batch.candidates, values)
        found: NDArray[np.float32] = program(*map(torch.from_numpy, arguments))[0].numpy()
        return found

    return score
