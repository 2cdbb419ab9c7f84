"""The quickstart's int4 program without the sparse term: what its cost is measured against."""

from __future__ import annotations

from pathlib import Path

from seedtune.runtime.bundle import Bounds, Generation
from seedtune.runtime.bundle.program import GENERATE, METHOD
from seedtune.runtime.files import is_whole, place_hashed, workplace

from ...data.fetch import fetch
from ...prepare.child import Progress, run_in_child
from ...prepare.prepare import Prepared
from ...quickstart import MODEL


def dense_program(base: Prepared) -> Path:
    """The program of ``base`` with every linear whole; lowered once, in a child process.

    Its weights are rounded to the nearest step, which changes no time. Its ``values`` are
    ``[P, 1]`` and only say how many probes there are.
    """
    file = base.folder / "dense.pte"
    if not is_whole(file):
        generation = base.bundle.programs[0].generation
        run_in_child(_lower, str(fetch(MODEL)), base.bundle.bounds, generation, file)
    return file


def _lower(
    model: str, bounds: Bounds, generation: Generation, file: Path, progress: Progress
) -> None:
    import torch
    from seedtune.export.lower.lower import lower, trace, trace_generate
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.export.program.generate_program import GenerateBounds, GenerateProgram
    from seedtune.export.program.score_program import ScoreProgram, example_inputs
    from seedtune.export.program.sensitive_linear import ProbeValues
    from seedtune.export.quantise.int4 import quantise_linears_

    loaded = load_causal_lm(model)
    program = ScoreProgram(loaded.model, ProbeValues(), bounds).eval()
    vocabulary, adapter = loaded.model.config.vocab_size, program.adapter_shape
    example = example_inputs(bounds, 1, vocabulary, adapter)
    with torch.no_grad():
        program(*example)
    quantise_linears_(program)
    writing = GenerateProgram(program, 1, GenerateBounds(generation.chunk, generation.context))
    traces = {
        METHOD: lambda: trace(program, example, bounds),
        GENERATE: lambda: trace_generate(writing.eval(), writing.example(vocabulary)),
    }
    with workplace(file) as work:
        lower(traces, work / file.name)
        place_hashed(work / file.name, file)
