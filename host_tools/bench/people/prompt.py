"""A person's earlier messages in the prompt of a float32 model: nothing is learned.

They are read once; every later message starts from the keys and values that they left.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from seedtune.runtime.bundle import DEFAULT_BOUNDS
from seedtune.runtime.engines.system_memory import peak_resident_bytes
from seedtune.runtime.tasks import Batch, encode_rows

from ...data.named_tasks import TaskData
from ..measuring.peak import forget_peak
from ..measuring.timing import Stopwatch
from ..measuring.tuning_run import Progress
from ..methods.float_task import FloatTask
from .data import SPEC, Person
from .judged import judged
from .next_words import Score, Words, measure, message_batches, ranked, torch_score

SEPARATOR = "\n\n"


def run(person: Person, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Put as many of the last messages before a row as ``settings["rooms"]`` tokens hold; held-out
    messages choose the room, which may be none.

    Returns:
        See ``judged.judged``; ``room``, the tokens chosen. Seconds are those of choosing and
        of reading them once.
    """
    own = {**settings, "batch_size": DEFAULT_BOUNDS.rows, "test_rows": None}
    rows = [*person.train, *person.held_out]
    cell = FloatTask.of(settings["source"], TaskData("senders", rows, person.test, SPEC), own)
    held_out = cell.train[len(person.train) :]
    forget_peak()
    watch = Stopwatch()
    scores = {0: torch_score(cell.model)}
    losses = {}
    for room in (0, *settings["rooms"]):
        if room:
            scores[room] = prompted(cell.model, _shown(cell, rows[: len(person.train)], room))
        found = measure(scores[room], message_batches(cell.task, held_out, cell.bounds))
        losses[room] = math.log(found["perplexity"])
        progress(f"{room} tokens shown: {losses[room]:.4f} on held-out messages")
    chosen = min(losses, key=lambda room: (losses[room], room))
    if chosen:
        scores[chosen] = prompted(cell.model, _shown(cell, rows, chosen))
    spent = {**watch.read()._asdict(), "peak_rss_bytes": peak_resident_bytes()}
    return {**judged(scores[chosen], cell), **spent, "room": chosen}


def _shown(cell: FloatTask, rows: list[dict[str, Any]], room: int) -> list[int]:
    """Tokens of the last rows, whole ones, that ``room`` holds."""
    separator = cell.tokenizer.encode(SEPARATOR).ids
    shown: list[int] = []
    for example in reversed(encode_rows(cell.task, rows)):
        length = int(example.positions[:, 1].max()) + 2
        tokens = [*example.tokens[0, :length].tolist(), *separator]
        if len(shown) + len(tokens) > room:
            break
        shown = tokens + shown
    return shown


def prompted(model: Any, shown: list[int]) -> Score:
    """``next_words.torch_score`` of what follows the tokens ``shown``."""
    with torch.inference_mode():
        kept = model.base_model(torch.tensor([shown]), use_cache=True).past_key_values

    @torch.inference_mode()
    def score(batch: Batch) -> Words:
        tokens = torch.from_numpy(batch.tokens)
        # A call adds its own keys and values to what it is given.
        past = copy.deepcopy(kept)
        past.batch_repeat_interleave(len(tokens))
        states = model.base_model(tokens, past_key_values=past, use_cache=True)
        hidden = states.last_hidden_state.flatten(0, 1)[torch.from_numpy(batch.positions)]
        return ranked(model.get_output_embeddings()(hidden), batch)

    return score
