"""From an eager program to its graph: a method traced with every axis dynamic up to its bound (one
bounded by 1 is static)."""

from collections.abc import Callable
from typing import Any

import torch
from seedtune.runtime.bundle.program import block_shapes
from torch.export import Dim, ExportedProgram, export

from ..program.block_tap import BlockTap
from ..program.generate_program import GenerateProgram
from ..program.score_program import PrefixProgram, ScoreProgram
from ..quiet import quiet
from .known_sizes import known_quantisation

Progress = Callable[[int, int], None]
"""Called with (blocks reached, blocks in all)."""


def trace(program: ScoreProgram, progress: Progress = lambda done, total: None) -> ExportedProgram:
    """Export ``score``."""
    return _export(program, program.example(), _score_axes(program), program.tap, progress)


def trace_behind(program: ScoreProgram) -> ExportedProgram:
    """Export ``behind``: ``score`` of rows behind a prefix of any length."""
    axes, most = _score_axes(program), program.bounds.prefix
    axes["more"] += _prefix_axes(program, axes, _axis("L", most))
    example = (*program.example(), *_example_prefix(program, min(23, most)))
    return _export(program, example, axes, program.tap)


def trace_with_prefix(
    program: PrefixProgram, progress: Progress = lambda done, total: None
) -> ExportedProgram:
    """Export the one graph that scores and reads a prefix: of any length, or none."""
    score = program.score
    axes, most = _score_axes(score), max(2, score.bounds.prefix)  # one token would fix the axis
    axes["kept"] = {0: _axis("Q", score.bounds.length, 0)}
    axes["more"] += _prefix_axes(score, axes, _axis("L", most, 0))
    own, terms = score.example()[:5], score.example()[5:]
    kept, prefix = torch.arange(min(7, score.bounds.length)), _example_prefix(score, min(23, most))
    return _export(program, (*own, kept, *terms, *prefix), axes, score.tap, progress)


def trace_generate(program: GenerateProgram) -> ExportedProgram:
    """Export ``generate`` for any number of new tokens and places of the cache."""
    slots = _axis("S", program.context)
    axes = {
        "tokens": {1: _axis("T", program.chunk)},
        "start": {},
        "columns": {},
        "adapter": {},
        "more": (
            *({} for _ in program.score.terms_shapes),
            *({axis: slots} for _ in program.score.cache_shapes for axis in (2, 1)),
        ),
    }
    return _export(program, program.example(), axes, program.score.tap)


def trace_columns(program: GenerateProgram) -> ExportedProgram:
    """Export the method that makes ``columns`` of values."""
    with torch.no_grad(), quiet():
        return export(program.columns, (torch.zeros(1, program.score.entries),), strict=False)


def input_name(traced: str, terms: int) -> str:
    """What engines call an input of a traced program that takes so many terms."""
    name, _, number = traced.rpartition("_")
    if name != "more":
        return traced
    behind = int(number) - terms
    return f"term_{number}" if behind < 0 else f"prefix_{behind}"


def _score_axes(program: ScoreProgram) -> dict[str, Any]:
    bounds = program.bounds
    scored = _axis("N", bounds.positions)
    return {
        "tokens": {0: _axis("B", bounds.rows), 1: _axis("T", bounds.length, 2)},
        "positions": {0: scored},
        "candidates": {0: scored, 1: _axis("C", bounds.candidates)},
        "values": {0: _axis("P", bounds.probes)},
        "adapter": {},
        "more": tuple({} for _ in program.terms_shapes),
    }


def _prefix_axes(program: ScoreProgram, axes: dict[str, Any], tokens: Any) -> tuple[Any, ...]:
    probes = axes["values"][0]
    return tuple({0: probes, axis: tokens} for _ in program.cache_shapes for axis in (3, 2))


def _example_prefix(program: ScoreProgram, tokens: int) -> list[torch.Tensor]:
    probes = len(program.example()[3])
    return [torch.zeros(shape) for shape in block_shapes(program.cache_shapes, probes, tokens)]


def _axis(name: str, most: int, least: int = 1) -> Any:
    return Dim(name, min=least, max=most) if most > least else None


def _export(
    program: Any,
    example: tuple[torch.Tensor, ...],
    axes: dict[str, Any],
    tap: BlockTap,
    progress: Progress = lambda done, total: None,
) -> ExportedProgram:
    blocks = tap.all_blocks
    if not axes["more"]:
        del axes["more"]  # arguments that are not there have no axes
    hooks = [
        block.register_forward_pre_hook(lambda *_, done=done: progress(done, len(blocks)))
        for done, block in enumerate(blocks)
    ]
    try:
        with torch.no_grad(), quiet(), known_quantisation():
            return export(program, example, dynamic_shapes=axes, strict=False)
    finally:
        for hook in hooks:
            hook.remove()
