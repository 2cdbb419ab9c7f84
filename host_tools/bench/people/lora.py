"""LoRA on one person's messages: in float32, and over 4-bit weights with checkpointed gradients.

The second is QLoRA (Dettmers et al., arXiv 2305.14314) on the processor: NF4 weights of
bitsandbytes, dequantised layer by layer in both passes, activations recomputed block by block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from seedtune.export.model.decoder_linears import decoder_linears
from seedtune.runtime.engines.system_memory import peak_resident_bytes
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.tasks import encode_rows

from ...data.named_tasks import TaskData
from ..measuring.peak import forget_peak
from ..measuring.timing import Stopwatch
from ..measuring.tuning_run import Progress
from ..methods.float_task import FloatTask
from ..methods.lora import Adapter
from .data import SPEC, Person, batch_size
from .judged import judged
from .next_words import message_batches, torch_score


def run(person: Person, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Tune for some epochs; held-out messages choose the epoch that ships, or the start.

    Returns:
        See ``judged.judged``; ``epochs`` says what shipped. Peak memory is that of learning:
        what loading took is forgotten.
    """
    batch = batch_size(settings["messages"])
    own = {**settings, "batch_size": batch, "test_rows": None}
    cell = FloatTask.of(
        settings["source"], TaskData("senders", person.train, person.test, SPEC), own
    )
    if settings["weights"] == "nf4":
        quantise(cell.model)
        cell.model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings["messages"] == 0:
        return judged(torch_score(cell.model), cell)
    epoch = math.ceil(len(cell.train) / batch)
    adapter = Adapter(cell, {**own, "steps": epoch * settings["epochs"]})
    weights = [weight for weight in adapter.model.parameters() if weight.requires_grad]
    held_out = encode_rows(cell.task, person.held_out)
    forget_peak()
    watch = Stopwatch()
    best, shipped, kept = math.inf, 0, [weight.detach().clone() for weight in weights]
    for done in range(settings["epochs"] + 1):
        if done:
            adapter.model.train()
            for step in range((done - 1) * epoch, done * epoch):
                adapter.step(step)
        adapter.model.eval()
        loss = math.log(_perplexity(cell, held_out))
        progress(f"epoch {done}: {loss:.4f} on held-out messages")
        if loss < best:
            best, shipped, kept = loss, done, [weight.detach().clone() for weight in weights]
    spent = {**watch.read()._asdict(), "peak_rss_bytes": peak_resident_bytes()}
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return {**judged(torch_score(adapter.model.get_base_model()), cell), **spent, "epochs": shipped}


def quantise(model: Any) -> None:
    """Put the decoder's linear weights into NF4, blocks of 64, in place.

    Raises:
        SeedtuneError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise SeedtuneError("lora-nf4 needs bitsandbytes: pip install bitsandbytes") from error
    for name, linear in decoder_linears(model).items():
        parent, _, own = name.rpartition(".")
        small = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.float32,
            quant_type="nf4",
        )
        small.weight = bnb.nn.Params4bit(
            linear.weight.detach(), requires_grad=False, quant_type="nf4"
        )
        small.bias = linear.bias
        # Its kernel for inference would pack the weights anew, which training cannot read.
        small.support_avx512bf16_for_cpu = False
        setattr(model.get_submodule(parent), own, small.to("cpu"))
    model.is_loaded_in_4bit = True  # what peft looks at


def _perplexity(cell: FloatTask, examples: Any) -> float:
    from .next_words import measure

    return measure(torch_score(cell.model), message_batches(cell.task, examples, cell.bounds))[
        "perplexity"
    ]
