"""``seedtune bench fidelity``: the exported program against eager int4 and against float32.

The eager int4 model is the very module that was exported, run by PyTorch with torchao's
quantisation; float32 is the model as loaded, with every linear and its embedding whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.export.recipe import Recipe
from seedtune.runtime.bundle import Bounds, Bundle
from seedtune.runtime.engines import Engine, open_engine
from seedtune.runtime.scoring.batch_loss import split_batch
from seedtune.runtime.tasks import Batch, encode_rows, task_for

from ..data.calibration import load_calibration
from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..prepare.prepare import Prepared
from ..quickstart import DEFAULT_TASK, MODEL
from .measuring.results_files import RESULTS, say, write_figures
from .programs.variants import quickstart_program

Score = Callable[[Batch, NDArray[np.float32]], NDArray[np.float32]]
"""Log-probabilities of a batch under rows of values, whoever computes them: see ``Engine``."""


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


def perplexity(
    score: Score, text: NDArray[np.int64], values: NDArray[np.float32], bounds: Bounds
) -> float:
    """Of the next tokens of ``text`` int64 ``[n, length]`` under ``values`` float32 ``[1, K]``."""
    total = 0.0
    for batch in text_batches(text, bounds):
        total -= float(score(batch, values)[0].sum(dtype=np.float64))
    return math.exp(total / (text.shape[0] * (text.shape[1] - 1)))


def text_batches(text: NDArray[np.int64], bounds: Bounds) -> Iterator[Batch]:
    """``text`` int64 ``[n, length]``, as many rows at a time as the bounds allow, with the next
    tokens for candidates."""
    length = text.shape[1]
    if length > bounds.length or length - 1 > bounds.positions:
        raise ValueError(f"sequences of {length} tokens exceed {bounds}")
    rows = min(bounds.rows, bounds.positions // (length - 1))
    for first in range(0, len(text), rows):
        part = text[first : first + rows]
        places = np.arange(part.size).reshape(part.shape)[:, :-1]
        gold = np.zeros(len(part), np.int64)
        yield Batch(part, places.reshape(-1), part[:, 1:].reshape(-1, 1), gold)


def engine_score(engine: Engine) -> Score:
    """``score`` of an engine."""
    return lambda batch, values: engine.score(batch, values).logp


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


def eager_program(loaded: Any, base: Prepared) -> Any:
    """The ``ScoreProgram`` that ``base`` was exported from, in PyTorch; consumes ``loaded``."""
    from seedtune.export.profile.kept_profile import kept_profile
    from seedtune.export.profile.masks import build_mask, mask_method
    from seedtune.export.program.prepare_program import prepare_program
    from seedtune.export.quantise.quantise_program import quantise_program

    manifest = base.bundle.manifest
    text = load_calibration(loaded.tokenizer)
    profile = kept_profile(loaded, text.profile, text.sha256)
    method = mask_method(manifest["mask"]["method"], model=loaded.model)
    mask = build_mask(profile, manifest["mask"]["fraction"], method)
    recipe = recipe_of(manifest["quantisation"])
    activity = {name: layer.input_absmax for name, layer in profile.layers.items()}
    program, surgery = prepare_program(loaded.model, mask, base.bundle.bounds, recipe, activity)
    _same_entries(surgery.indices, base.bundle)
    quantise_program(program, surgery, recipe, text.profile)
    return program


def recipe_of(quantisation: Mapping[str, Any]) -> Recipe:
    """The recipe that a bundle's manifest states under ``quantisation``."""
    return Recipe(**{field.name: quantisation[field.name] for field in fields(Recipe)})


def _same_entries(indices: NDArray[np.int64], bundle: Bundle) -> None:
    if not np.array_equal(indices, bundle.indices):
        raise ValueError(f"{bundle.path}: its mask is not the one of the profile beside it")
