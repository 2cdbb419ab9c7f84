"""``seedtune bench generate``: what a written token costs over the program without the sparse term.

The bundle's program and the same int4 program without sensitive values read a prompt and write an
answer, each turn in processes of their own: of two programs in one process the one that was opened
last is faster, by up to a seventh.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.executorch_native import NativeEngine

from ..data.calibration import load_calibration
from ..data.fetch import fetch
from ..prepare.prepare import Prepared, prepare
from ..quickstart import MODEL
from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .measuring.timing import Spent
from .processes import writing
from .programs.dense_program import dense_program

PROMPT, ANSWER = 64, 64
"""Tokens of the prompt and of the answer."""
OWN, DENSE = "seedtune", "without sparse term"


def bench_generate(
    *,
    base: Prepared | None = None,
    threads: int | None = None,
    turns: int = 7,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Time both programs in turns.

    Args:
        base: by default the quickstart's.

    Returns:
        ``speed``: of each program tokens a second to read and to write (medians), and how many
        times as fast the bundle's program was in the same turn, by the clock and by the
        processor's time.
    """
    base = base or prepare(str(fetch(MODEL)))
    if threads is None:
        with open_engine(base.bundle) as engine:
            assert isinstance(engine, NativeEngine)
            threads = engine.threads
    programs: dict[str, Path | str] = {OWN: "", DENSE: dense_program(base)}
    prompt = _prompt(base.bundle)
    taken: dict[str, list[dict[str, Spent]]] = {name: [] for name in programs}
    for turn in range(turns):
        for name in list(programs) if turn % 2 else list(programs)[::-1]:
            asked = (base.bundle.path, programs[name], threads, ANSWER, json.dumps(prompt))
            found = run_module(writing.__name__, *asked)
            taken[name].append({what: Spent(*each) for what, each in found.items()})
            say(f"turn {turn + 1} of {turns}, {name}: {taken[name][-1]['written'].seconds:.2f} s")
    speed = {
        name: {
            "read_per_second": PROMPT / statistics.median(each["read"].seconds for each in own),
            "written_per_second": ANSWER
            / statistics.median(each["written"].seconds for each in own),
            "seedtune_is_faster": _faster(taken[OWN], own),
        }
        for name, own in taken.items()
    }
    figures = {
        "tokens": {"prompt": PROMPT, "answer": ANSWER},
        "speed": {"threads": threads, "turns": turns, **speed},
        "bundle_sha256": base.bundle.sha256,
    }
    return write_figures("generate", figures, results)


def _prompt(bundle: Bundle) -> list[int]:
    """The beginning of a text that nothing was calibrated on."""
    from transformers import PreTrainedTokenizerFast

    own = bundle.tokenizer()
    end = own.id_to_token(bundle.end_ids[0])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token=end)
    found: list[int] = load_calibration(tokenizer, held_out=1).held_out[0].tolist()
    return found[:PROMPT]


def _faster(
    own: list[dict[str, Spent]], others: list[dict[str, Spent]]
) -> dict[str, dict[str, float]]:
    """The others' time over ``own`` of the same turn, its median."""
    return {
        name: {
            field: statistics.median(
                getattr(other[what], field) / getattr(mine[what], field)
                for mine, other in zip(own, others, strict=True)
            )
            for field in Spent._fields
        }
        for name, what in (("reading", "read"), ("writing", "written"))
    }
