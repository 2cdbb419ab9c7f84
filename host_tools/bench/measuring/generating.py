"""One measured process of ``bench serve``: the model in Python, as ``seedtune generate`` uses it.

``python -m seedtune.host_tools.bench.measuring.generating BUNDLE THREADS COUNT`` prints a line when
it is ready, and then, for each prompt (a JSON text a line of its standard input), one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

import seedtune.host_tools.cli  # noqa: F401  # the command holds it, too
from seedtune.runtime import open_model


def main() -> None:
    """Answer until the input ends."""
    bundle, threads, count = sys.argv[1:]
    with open_model(bundle, threads=int(threads)) as model:
        _ = model.engine
        print("ready", flush=True)
        for line in sys.stdin:
            prompt = json.loads(line)
            began = time.perf_counter()
            first = last = 0.0
            writing = model.generate(prompt, max_tokens=int(count))
            for _ in writing:
                last = time.perf_counter()
                first = first or last
            found = {
                "first_seconds": first - began,
                "tokens_per_second": (len(writing.tokens) - 1) / (last - first),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
