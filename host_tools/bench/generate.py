"""``seedtune bench generate``: what writing costs, and whether it is what the model would say.

Speed in turns, on one machine in one run: a prompt is read and an answer written by the bundle's
program, by the same int4 program without the sparse term, by transformers in float32 with a static
cache, and by llama.cpp on the GGUF file where its package ``xllamacpp`` is installed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.writing import Manner, Writer

from ..data.calibration import load_calibration
from ..data.fetch import fetch
from ..prepare.prepare import Prepared
from ..quickstart import MODEL
from .contenders.writers import Answer, llama_cpp, transformers_float32, written
from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .measuring.timing import Spent
from .processes import generate as process
from .processes import writing
from .programs.dense_program import dense_program
from .programs.eager_program import eager_program
from .programs.variants import quickstart_program

PROMPT, ANSWER, CONTEXT = 64, 64, 512
"""Tokens of a prompt and of an answer, and of the long text whose memory is measured."""
OWN = "seedtune"


def bench_generate(
    *,
    base: Prepared | None = None,
    threads: int | None = None,
    turns: int = 7,
    prompts: int = 20,
    results: Path = RESULTS,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Speed, start, memory and agreement.

    Args:
        prompts: whose greedy answers are compared with the eager int4 program; 0 leaves that away.

    Returns:
        ``speed`` (tokens a second to read and to write, medians, and how many times as fast the
        bundle's program was, by the clock and by the processor's time),
        ``start`` (seconds from the process's start to its first piece of text), ``memory`` (bytes
        resident) and ``agreement`` (of each prompt, the first token at which the eager program
        would go on differently; None for none).
    """
    base = base or quickstart_program()
    bundle = base.bundle
    texts = _texts(bundle, max(prompts, 1))
    figures: dict[str, Any] = {
        "tokens": {"prompt": PROMPT, "answer": ANSWER, "context": CONTEXT},
        "speed": _speed(base, texts[0], threads, turns, progress),
        "start": _start(bundle, progress),
        "memory": _memory(bundle, progress),
    }
    if prompts:
        figures["agreement"] = _agreement(base, texts[:prompts], progress)
    figures["bundle_sha256"] = bundle.sha256
    return write_figures("generate", figures, results)


def _texts(bundle: Bundle, count: int) -> list[list[int]]:
    """Beginnings of texts that nothing was calibrated on."""
    from transformers import PreTrainedTokenizerFast

    own = bundle.tokenizer()
    end = own.id_to_token(bundle.end_ids[0])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token=end)
    found: list[list[int]] = load_calibration(tokenizer, held_out=count).held_out.tolist()
    return [text[:PROMPT] for text in found]


def _speed(
    base: Prepared,
    prompt: list[int],
    threads: int | None,
    turns: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    bundle = base.bundle
    with open_engine(bundle, threads or "auto") as engine:
        values = bundle.values.astype(np.float32)
        used = engine.threads
        found = _against_dense(base, prompt, used, turns, progress)
        rivals = {
            "transformers float32, static cache": transformers_float32(str(fetch(MODEL)), used),
            "llama.cpp": llama_cpp(str(fetch(MODEL)), used),
        }
        running = {name: answer for name, answer in rivals.items() if answer is not None}
        own = written(lambda: engine.text(values))
        # Rates of our own are those without a rival, which takes the caches from what follows it.
        found = _in_turns(own, running, prompt, turns, progress) | found
    return {"threads": used, "turns": turns, **found}


def _against_dense(
    base: Prepared,
    prompt: list[int],
    threads: int,
    turns: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """The program and the one without a sparse term, each turn in processes of their own: of two
    programs in one process the one that was opened last is faster, by up to a seventh."""
    programs: dict[str, Path | str] = {OWN: "", "without sparse term": dense_program(base)}
    taken: dict[str, list[tuple[Spent, Spent]]] = {name: [] for name in programs}
    for turn in range(turns):
        for name in list(programs) if turn % 2 else list(programs)[::-1]:
            asked = (base.bundle.path, programs[name], threads, ANSWER, json.dumps(prompt))
            spent = run_module(writing.__name__, *asked)
            taken[name].append((Spent(*spent["read"]), Spent(*spent["written"])))
    return _rates(taken, len(prompt), progress)


def _in_turns(
    own: Answer,
    others: Mapping[str, Answer],
    prompt: list[int],
    turns: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Tokens a second of each, and how much faster ``own`` is in the same turn."""
    running = {OWN: own, **others}
    taken: dict[str, list[tuple[Spent, Spent]]] = {name: [] for name in running}
    for turn in range(turns + 1):
        names = list(running) if turn % 2 else list(running)[::-1]
        for name in names:
            seconds = running[name](prompt, ANSWER)
            if turn:  # the first packs weights and faults pages in
                taken[name].append(seconds)
    return _rates(taken, len(prompt), progress)


def _rates(
    taken: Mapping[str, list[tuple[Spent, Spent]]], prompt: int, progress: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Of what each spent on reading ``prompt`` tokens and on writing, turn by turn."""
    speed = {}
    for name, pairs in taken.items():
        speed[name] = {
            "read_per_second": prompt / statistics.median(read.seconds for read, _ in pairs),
            "written_per_second": ANSWER / statistics.median(write.seconds for _, write in pairs),
            "seedtune_is_faster": _faster(taken[OWN], pairs),
        }
        progress(f"{name}: {speed[name]}")
    return speed


def _faster(
    own: list[tuple[Spent, Spent]], others: list[tuple[Spent, Spent]]
) -> dict[str, dict[str, float]]:
    """The others' time over ``own`` of the same turn, its median."""
    return {
        what: {
            field: statistics.median(
                getattr(other[at], field) / getattr(mine[at], field)
                for mine, other in zip(own, others, strict=True)
            )
            for field in Spent._fields
        }
        for at, what in enumerate(("reading", "writing"))
    }


def _start(bundle: Bundle, progress: Callable[[str], None]) -> dict[str, float]:
    """Seconds of the best of three processes, whose files are in memory."""
    asked = (bundle.path, PROMPT, CONTEXT)
    found = [run_module(process.__name__, "start", *asked) for _ in range(3)]
    best = min(found, key=lambda each: each["first_seconds"])
    progress(f"first piece of text after {best['first_seconds']:.2f} s")
    return best


def _memory(bundle: Bundle, progress: Callable[[str], None]) -> dict[str, float]:
    found = run_module(process.__name__, "memory", bundle.path, PROMPT, CONTEXT)
    progress(", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in found.items()))
    return found


def _agreement(
    base: Prepared, prompts: list[list[int]], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Greedy answers against the eager program, which is shown each prompt with its answer."""
    import torch
    from seedtune.export.model.load_model import load_causal_lm

    bundle = base.bundle
    values = bundle.values.astype(np.float32)
    answers = []
    with open_engine(bundle) as engine:
        for prompt in prompts:
            # No end is known to this writer: every answer has its full length.
            writing = Writer(engine.text(values), bundle.tokenizer(), []).write(
                prompt, Manner(max_tokens=ANSWER)
            )
            list(writing)
            answers.append(writing.tokens)
    program = eager_program(load_causal_lm(str(fetch(MODEL))), base)
    said: list[Any] = []
    program.head.register_forward_hook(lambda module, given, logits: said.append(logits))
    first: list[int | None] = []
    close: list[float] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([prompt + answer])
        places = torch.arange(len(prompt) - 1, tokens.shape[1] - 1)
        with torch.no_grad():
            program(tokens, places, places[:, None] * 0, torch.from_numpy(values)[None])
        logits = said.pop()[0]
        other = logits.argmax(-1).numpy() != np.array(answer)
        at = int(np.flatnonzero(other)[0]) if other.any() else None
        first.append(at)
        if at is not None:
            close.append(float(logits[at].max() - logits[at, answer[at]]))
        progress(f"prompt {len(first)}: {'same' if at is None else f'differs at {at}'}")
    return {
        "first_difference": first,
        "same": sum(each is None for each in first),
        # How much likelier the eager program finds its own token there, in nats.
        "largest_gap_at_a_difference": max(close, default=None),
    }
