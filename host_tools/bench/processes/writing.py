"""One measured process of ``bench generate``: how fast one program writes, with none beside it.

``python -m seedtune.host_tools.bench.processes.writing BUNDLE PROGRAM THREADS COUNT PROMPT`` prints
one JSON object. PROGRAM is ``dense_program``'s, or nothing for the bundle's own; COUNT tokens are
written behind PROMPT, a JSON array of tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.bundle.program import GENERATE
from seedtune.runtime.engines import Text, open_engine
from seedtune.runtime.engines.cached_text import CachedText
from seedtune.runtime.engines.executorch_native import NativeProgram

from ..measuring.timing import Spent, Stopwatch

TURNS = 3


def main(
    path: str, program: str, threads: int, count: int, prompt: list[int]
) -> dict[str, list[float]]:
    """``read`` and ``written``, medians of what was ``Spent``."""
    bundle = open_bundle(path)
    if program:
        dense = NativeProgram(Path(program), threads=threads)
        begin = partial(_dense_text, dense, bundle)
    else:
        engine = open_engine(bundle, threads)
        begin = partial(engine.text, bundle.values.astype(np.float32))
    _greedy(begin(), prompt, count)  # packs weights and faults pages in
    taken = [_greedy(begin(), prompt, count) for _ in range(TURNS)]
    return {
        name: [
            statistics.median(getattr(spent[at], field) for spent in taken)
            for field in Spent._fields
        ]
        for at, name in enumerate(("read", "written"))
    }


def _greedy(text: Text, prompt: list[int], count: int) -> tuple[Spent, Spent]:
    """What it took to read ``prompt``, and to write ``count`` tokens behind it."""
    watch = Stopwatch()
    logits = text.read(prompt)
    read = watch.read()
    for _ in range(count):
        logits = text.read([int(logits.argmax())])
    return read, watch.read()


def _dense_text(program: NativeProgram, bundle: Bundle) -> Text:
    """A text of a program that has ``bundle``'s sizes and no columns."""
    assert bundle.generation is not None and bundle.adapter_shape is not None
    inputs = [np.zeros((1, 1), np.float32), np.zeros(bundle.adapter_shape, np.float32)]
    return CachedText(
        lambda given, shapes: program.run(GENERATE, given, *shapes),
        bundle.generation,
        bundle.vocab_size,
        inputs,
    )


if __name__ == "__main__":
    path, program, threads, count, prompt = sys.argv[1:6]
    print(json.dumps(main(path, program, int(threads), int(count), json.loads(prompt))))
