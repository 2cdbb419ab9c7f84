"""One measured process of ``bench generate``: how fast one program writes, with none beside it.

``python -m seedtune.host_tools.bench.processes.writing BUNDLE PROGRAM THREADS COUNT PROMPT`` prints
one JSON object. PROGRAM is another program of the bundle's sizes, without columns, or nothing for
the bundle's own; COUNT tokens are written behind PROMPT, a JSON array of tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from ..measuring.timing import Spent

TURNS = 3


def main(
    path: str, program: str, threads: int, count: int, prompt: list[int]
) -> dict[str, list[float]]:
    """``read`` and ``written``, medians of what was ``Spent``."""
    import numpy as np
    from seedtune.runtime.bundle import open_bundle
    from seedtune.runtime.engines import open_engine
    from seedtune.runtime.engines.executorch_native import NativeProgram

    from ..contenders.writers import dense_text, written

    bundle = open_bundle(path)
    if program:
        dense = NativeProgram(Path(program), threads=threads)
        answer = written(lambda: dense_text(dense, bundle))
    else:
        engine = open_engine(bundle, threads)
        answer = written(lambda: engine.text(bundle.values.astype(np.float32)))
    answer(prompt, count)  # packs weights and faults pages in
    taken = [answer(prompt, count) for _ in range(TURNS)]
    return {
        name: [
            statistics.median(getattr(spent[at], field) for spent in taken)
            for field in Spent._fields
        ]
        for at, name in enumerate(("read", "written"))
    }


if __name__ == "__main__":
    path, program, threads, count, prompt = sys.argv[1:6]
    print(json.dumps(main(path, program, int(threads), int(count), json.loads(prompt))))
