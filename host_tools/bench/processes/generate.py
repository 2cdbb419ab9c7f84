"""One measured process of ``bench generate``: start-up and memory belong to whole processes.

``python -m seedtune.host_tools.bench.processes.generate WHAT BUNDLE PROMPT CONTEXT`` prints one
JSON object. WHAT is ``start`` (seconds since the kernel started the process until a first piece of
text behind PROMPT tokens) or ``memory`` (bytes resident with the program that scores, with the one
that writes as well, and with a text of CONTEXT tokens).
"""

from __future__ import annotations

import json
import os
import sys

from .age import seconds_since_start


def main(what: str, path: str, prompt: int, context: int) -> dict[str, float]:
    """The figures; see the module."""
    import numpy as np
    from seedtune.runtime.bundle import open_bundle
    from seedtune.runtime.engines import open_engine
    from seedtune.runtime.engines.system_memory import resident_bytes
    from seedtune.runtime.writing import Manner, Writer

    bundle = open_bundle(path)
    opened = seconds_since_start()
    values = bundle.values.astype(np.float32)
    tokens = np.random.default_rng(0).integers(0, bundle.vocab_size, context).tolist()
    with open_engine(bundle, len(os.sched_getaffinity(0))) as engine:
        scoring = resident_bytes() or 0
        loaded = seconds_since_start()
        text = engine.text(values)
        writing = resident_bytes() or 0
        if what == "start":
            next(Writer(text, bundle.tokenizer(), []).write(tokens[:prompt], Manner()))
            return {
                "opened_seconds": opened,
                "loaded_seconds": loaded,
                "first_seconds": seconds_since_start(),
            }
        text.read(tokens)
        full = resident_bytes() or 0
    return {"scoring": scoring, "writing": writing, "writing_full_context": full}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]))))
