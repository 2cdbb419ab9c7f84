"""One contender of ``bench gpu`` in a process of its own: its memory ends with it.

``python -m seedtune.host_tools.bench.processes.gpu WHAT BUNDLE DEVICE`` does some steps and prints
one JSON object: ``seconds`` (median of a step) and ``peak_bytes`` (of torch's allocator on a card,
of the process on the CPU), or ``missing``.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.system_memory import peak_resident_bytes
from seedtune.runtime.estimators.noise import add_noise, perturb

from ..programs.random_bundle import MEMORY_LIMIT, PROBES, batch_of

STEPS = 5
EPS, RATE = 1e-3, 1e-6
LIBRARIES = ("peft", "bitsandbytes")
"""Of QLoRA, which is left out where one is not there."""


def main(what: str, path: str, device: str) -> dict[str, Any]:
    """What the module's text says."""
    make = {
        "ours": _ours,
        "forwards-bf16": _forwards,
        "mezo-bf16": _mezo,
        "qlora": lambda path, device: _qlora(path, device, False),
        "qlora-checkpointing": lambda path, device: _qlora(path, device, True),
    }[what]
    try:
        step = make(Path(path), device)
    except ModuleNotFoundError as error:
        return {"missing": f"{error.name} is not installed"}
    taken = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_reserved() if device == "cuda" else peak_resident_bytes()
    return {"seconds": statistics.median(taken[1:]), "peak_bytes": peak}


def _ours(path: Path, device: str) -> Callable[[], object]:
    """Both probes in one pass, and the update."""
    bundle = open_bundle(path)
    engine = open_engine(bundle, name=f"torch-int4:{device}", memory_limit=MEMORY_LIMIT)
    batch, values = batch_of(bundle.vocab_size), bundle.values.astype(np.float32)
    rows = np.empty((PROBES, len(values)), np.float32)
    step = 0

    def two_point() -> None:
        nonlocal step
        perturb(values, rows, (EPS, -EPS), seed=0, step=step, kind="rademacher")
        up, down = engine.score(batch, rows).logp.mean(axis=(1, 2))
        add_noise(values, RATE * float(up - down) / (2 * EPS), seed=0, step=step)
        step += 1

    return two_point


def _model(path: Path, device: str) -> tuple[Any, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    folder = path.parent / "hf"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    tokens = torch.from_numpy(batch_of(model.config.vocab_size).tokens).to(device)
    return model, tokens


def _loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Of the last token of each row: only its logits are computed, as in our program."""
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    return torch.nn.functional.cross_entropy(logits, tokens[:, 0])


@torch.no_grad()
def _forwards(path: Path, device: str) -> Callable[[], object]:
    model, tokens = _model(path, device)

    @torch.no_grad()
    def two() -> None:
        for _ in range(2):
            _loss(model, tokens)

    return two


def _mezo(path: Path, device: str) -> Callable[[], object]:
    """MeZO (arXiv 2305.17333, algorithm 1): all weights moved in place from a seed, thrice."""
    model, tokens = _model(path, device)
    weights = list(model.parameters())
    seed = 0

    def move(scale: float) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        for weight in weights:
            noise = torch.randn(
                weight.shape, generator=generator, device=device, dtype=weight.dtype
            )
            weight.add_(noise, alpha=scale)

    @torch.no_grad()
    def step() -> None:
        nonlocal seed
        move(EPS)
        up = _loss(model, tokens)
        move(-2 * EPS)
        down = _loss(model, tokens)
        move(EPS - RATE * float(up - down) / (2 * EPS))
        seed += 1

    return step


def _qlora(path: Path, device: str, checkpointing: bool) -> Callable[[], object]:
    """QLoRA (arXiv 2305.14314): NF4 weights, rank 8 on all linears, AdamW."""
    for name in LIBRARIES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(name, name=name)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    base = AutoModelForCausalLM.from_pretrained(
        path.parent / "hf", quantization_config=how, device_map={"": device}
    )
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
    model: Any = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    tokens = torch.from_numpy(batch_of(base.config.vocab_size).tokens).to(device)
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])

    def step() -> None:
        _loss(model.train(), tokens).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))
