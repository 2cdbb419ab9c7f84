"""``seedtune bench operators``: where the time of one step goes, by kernel, from an ETDump.

Runs the bundle's program with executorch's event tracer (through its Python binding, the only part
that reads the dump) at the passes that a two-point step makes, and ranks kernels by time. Events
inside a delegate are XNNPACK's own; the others are ExecuTorch's portable or optimised kernels.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bundle

from ..data.fetch import fetch
from ..prepare.prepare import prepare
from .contenders.steps import example_batch
from .measuring.results_files import RESULTS, write_figures

LENGTH = 32
RUNS = 5

REMEDY = {
    "Fully Connected (NC, QDU8, F32, QB4W) GEMM": "the int4 products themselves: fewer tokens, or "
    "a core with int8 matrix instructions",
    "Multiply (ND)": "norm scales, rotary embedding and the gate: fused kernels that XNNPACK lacks",
    "Batch Matrix Multiply (NC, F32) GEMM": "attention and the sparse products: fewer sensitive "
    "columns",
    "Add (ND)": "residuals, and a sum for each matrix with sensitive values: an int4 product that "
    "adds to its output",
    "Transpose (ND, X32)": "heads in and out of attention: a fused attention kernel",
    "Fully Connected (NC, F32) GEMM": "means of the RMS norms: a norm kernel",
    "Sigmoid (NC)": "the gate: a coarser approximation",
    "Softmax (NC, F32)": "attention: a fused attention kernel",
    "slice_copy": "rotary embedding's halves: a rotation kernel",
    "_log_softmax": "over the vocabulary, at scored positions only: the label words alone",
    "scatter": "the compact weights of each probe: float16 kernels",
    "index_select": "the sensitive columns of the input: a product that gathers",
    "between": "entering and leaving delegates, copies of inputs: fewer and larger delegates",
}
"""What it would take to remove the time."""


def bench_operators(*, results: Path = RESULTS) -> dict[str, Any]:
    """Also written to ``operators.json`` in ``results``.

    Returns:
        ``pass_seconds``, and ``kernels``: by name ``seconds``, ``share``, ``calls``, ``remedy``,
        largest first.
    """
    bundle = prepare(str(fetch("smollm2-135m"))).bundle
    return write_figures("operators", _profile(bundle), results)


def _profile(bundle: Bundle) -> dict[str, Any]:
    import torch
    from executorch.devtools import Inspector
    from executorch.extension.pybindings.portable_lib import _load_for_executorch

    bounds = bundle.bounds
    rows = bounds.tokens // LENGTH
    batch = example_batch(rows, LENGTH, bundle.vocab_size)
    values = np.repeat(bundle.values.astype(np.float32)[None], bounds.probes, axis=0)
    inputs = [torch.from_numpy(each) for each in (*batch, values)]
    if bundle.adapter_shape is not None:
        inputs.append(torch.zeros(bundle.adapter_shape))
    program = _load_for_executorch(str(bundle.program_path), enable_etdump=True)
    for _ in range(RUNS):
        program.run_method("score", tuple(inputs))
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "run.etdp"
        program.write_etdump_result_to_file(str(dump), str(Path(folder) / "debug"))
        events = Inspector(etdump_path=str(dump)).to_dataframe()
    milliseconds = events.set_index("event_name")["avg (ms)"]
    whole = float(milliseconds["Method::execute"])
    kernels: dict[str, list[float]] = {}
    delegates = 0.0
    for event, taken in milliseconds.items():
        if event == "DELEGATE_CALL":
            delegates += float(taken)
        elif event not in ("Method::execute", "Method::init", "Program::load_method"):
            kernels.setdefault(_kernel(str(event)), []).append(float(taken))
    kernels.pop("OPERATOR_CALL", None)  # the same time again, without the kernel's name
    inner = sum(sum(each) for each in kernels.values())
    kernels["between"] = [max(0.0, whole - inner)]
    ranked = sorted(kernels.items(), key=lambda item: -sum(item[1]))
    return {
        "pass": {"probes": bounds.probes, "rows": rows, "length": LENGTH},
        "pass_seconds": whole / 1e3,
        "kernels": {
            name: {
                "seconds": sum(taken) / 1e3,
                "share": sum(taken) / whole,
                "calls": len(taken) if name != "between" else None,
                "remedy": REMEDY.get(name),
            }
            for name, taken in ranked
            if sum(taken) >= 0.002 * whole
        },
    }


def _kernel(event: str) -> str:
    """An event's name without its number; ``native_call_slice_copy.Tensor_out`` in short."""
    name = re.sub(r" #\d+$", "", event)
    found = re.fullmatch(r"native_call_(\w+)\.\w+", name)
    return found[1] if found else name
