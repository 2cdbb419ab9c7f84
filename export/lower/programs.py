"""All programs of a bundle from one quantised module: each form an engine's, the weights once."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import Program
from seedtune.runtime.bundle.program import BEHIND, COLUMNS, GENERATE, METHOD
from seedtune.runtime.errors import ModelError

from ..model.mapped_pages import give_back_freed
from ..program.generate_program import GenerateProgram
from ..program.score_program import PrefixProgram, ScoreProgram
from ..quiet import quiet
from .stored_weights import FILE as WEIGHTS
from .stored_weights import StoredWeights
from .trace import trace, trace_behind, trace_columns, trace_generate, trace_with_prefix

FORMATS = ("executorch", "onnx", "torch")
"""Formats of programs, in the order in which they are made."""
FILE = "program.pte"
HOLD_WEIGHTS = (FILE, WEIGHTS)
"""Files that may hold the int4 weights; of those that there are, the first does."""
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); stages: ``trace lower``, and ``onnx torch`` for these."""


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats in their order, once each.

    Raises:
        ModelError: one is unknown, none is given, or what writes it is not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise ModelError(f"unknown program format {name!r}; take {', '.join(FORMATS)}")
    if not formats:
        raise ModelError(f"no program format; take {', '.join(FORMATS)}")
    if "onnx" in formats:
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ModelError(
                f"writing ONNX takes {error.name}; pip install 'seedtune[onnx-export]'"
            ) from error
    return tuple(name for name in FORMATS if name in formats)


def lower_to(
    formats: Sequence[str],
    program: ScoreProgram,
    work: Path,
    context: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[list[Program], dict[str, bytes | Path]]:
    """The programs of ``formats`` and the files that they name; changes ``program``.

    Args:
        program: quantised.
        work: folder for files that are too large for memory.
        context: tokens of a text that ExecuTorch's program can write; 0: none.

    Raises:
        ModelError: a program cannot take a form.
        OSError: ``work`` cannot be written.
    """
    programs: list[Program] = []
    files: dict[str, bytes | Path] = {}
    cache = {"cache": [list(shape) for shape in program.cache_shapes]}
    if "executorch" in formats:
        with quiet():
            from .lower import lower

        methods: dict[str, dict[str, Any]] = {METHOD: {}}
        traces = {METHOD: lambda: trace(program, partial(progress, "trace"))}
        if context:
            writing = GenerateProgram(program, context).eval()
            traces[GENERATE] = lambda: trace_generate(writing)
            traces[COLUMNS], methods[COLUMNS] = lambda: trace_columns(writing), {}
            if program.bounds.prefix:
                traces[BEHIND], methods[BEHIND] = lambda: trace_behind(program), cache
            methods[GENERATE] = {
                "columns": writing.columns.size,
                "chunk": writing.chunk,
                "context": context,
                **cache,
            }
        lower(program, traces, work / FILE, partial(progress, "lower"))
        files[FILE] = work / FILE
        programs.append(Program("executorch", (FILE,), "int8 per token", methods))
        gc.collect()  # a graph's nodes refer to each other
        give_back_freed()
    others = [name for name in formats if name != "executorch"]
    if others:
        from .int4_operator import through_int4_operator_

        through_int4_operator_(program)
        tracing = partial(progress, "trace again" if programs else "trace")
        own: dict[str, dict[str, Any]] = {METHOD: {}}
        if program.bounds.prefix:
            own[BEHIND] = cache
            exported = trace_with_prefix(PrefixProgram(program), tracing)
        else:
            exported = trace(program, tracing)
        weights, terms = StoredWeights(), len(program.terms_shapes)
        made: list[tuple[str, Any]] = []
        # A head for text and terms read them, and a program may hold their scales in another form.
        read = {"head": program.head}
        if program.terms is not None:
            matrices = program.terms.matrices()
            read |= {f"terms.{n}": getattr(each, "dense", each) for n, each in enumerate(matrices)}
        for owner, module in read.items():
            for name, tensor in module.named_buffers():
                weights.add(f"{owner}.{name}", tensor)
        for name in others:
            progress(name, 0, 1)
            if name == "onnx":
                from . import onnx

                made.append((onnx.FILE, onnx.OnnxProgram(exported, weights, own, terms)))
            else:
                from . import torch_graph

                graph = torch_graph.TorchProgram(exported, weights, own, terms)
                made.append((torch_graph.FILE, graph))
            progress(name, 1, 1)
        places = weights.placed(work / FILE if programs else None, work / WEIGHTS)
        if (work / WEIGHTS).exists():
            files[WEIGHTS] = work / WEIGHTS
        for file, each in made:
            described, files[file] = each.serialised(places)
            programs.append(described)
    return programs, files
