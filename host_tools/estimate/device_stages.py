"""Memory and time that tuning and writing will take on a device, as a sum of named components.

The constants were measured on SmolLM2-135M, as those of ``host_stages``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import NoReturn

import numpy as np
from seedtune.export.model.shape import ModelShape
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines import ENGINES, engine_module
from seedtune.runtime.engines.memory import PAGES, PassMemory
from seedtune.runtime.estimators import (
    ESTIMATORS,
    RunContext,
    make_estimator,
    part_of,
    settings_of,
    shape_of,
    spec_of,
)
from seedtune.runtime.scoring import answer_head, text_part
from seedtune.runtime.scoring.answer_head import AnswerHeads
from seedtune.runtime.scoring.block_terms import BlockTerms
from seedtune.runtime.scoring.known_forwards import MOST_BYTES
from seedtune.runtime.scoring.part import PartKind
from seedtune.runtime.scoring.parts import restored
from seedtune.runtime.scoring.text_head import TextHead
from seedtune.runtime.scoring.text_part import TextHeads
from seedtune.runtime.scoring.word_table import WordTable
from seedtune.runtime.settings import Settings

from .sizes import (
    COLUMN_SHARE,
    INT4_BYTES,
    MB,
    PIECE_KEPT,
    TAPPED,
    TEXT_WORK,
    Estimate,
    estimate_bundle,
    sensitive_entries,
    terms_of,
    text_frame_bytes,
    text_shape,
    tokenizer_pieces,
)

INT4_SPEED = 3.4
"""Speed of the int4 kernels with 8-bit activations over a float32 product on the same cores."""
TOKEN_READING = 0.39
"""Speed at which a token's pass reads int4 weights, keys and values over that of one float32
product with a vector. SmolLM2 on one thread of an AMD EPYC reads 20 GB/s so, and takes 10.3 ms a
token behind 64 others and 11.1 behind 256: 80 and 89 MB."""
CHUNK = 64
"""Tokens of a prompt in one pass: ``program.generate_program.CHUNK``, without importing torch."""
COMMAND_LINE = 32 * MB
"""Of the shell's command: typer, rich, and what it reads of rows before they are tokens, and keeps
of a run."""
COUNTED_BEFORE = 14 * MB
"""Of SmolLM2's tokenizer and values, in an engine's ``PROCESS_BYTES``."""
READ_AROUND = 1 << 21
"""Bytes of the embedding table that come in when a token occurs, at most: since version 6.18 Linux
maps all of the piece in which a page lies in its cache, up to 2 MB; before, 64 kB around it."""
ROW_BYTES = 1_500
"""Of an encoded row."""
HIDDEN_STATES = 3
"""That a program returns by default."""


def estimate_tuning(
    shape: ModelShape,
    bounds: Bounds,
    *,
    rows: int,
    length: int,
    engine: str | None = None,
    estimator: str | None = None,
    examples: int = 2000,
    speed: float,
) -> Estimate:
    """Peak resident memory of ``seedtune tune``, and seconds of one step.

    Args:
        bounds: of the program: they decide how much of a batch goes into a pass.
        rows, length: of a batch, one answer position a row.
        engine: its name; by default the one that is tried first.
        estimator: its name; by default the one that runs which choose an answer take.
        examples: to learn from and to evaluate on.

    Raises:
        EngineError: there is no engine of that name.
        TuningError: there is no estimator of that name.
    """
    engine = engine or next(iter(ENGINES))
    estimator = estimator or next(iter(ESTIMATORS))
    settings = settings_of({"estimator": estimator, "batch_size": rows})
    forwards = settings.options.forwards
    head = shape.head or shape.embedding
    in_pass = max(1, min(rows, bounds.tokens // length))
    probes = min(bounds.probes, forwards)
    passes = replace(
        bounds,
        rows=in_pass,
        length=length,
        positions=min(in_pass, bounds.positions),
        probes=probes,
    )
    memory = _pass_memory(shape)
    components = {
        **_opened(shape, engine, examples * length),
        "activations of a pass": passes.probes * passes.tokens * memory.token,
        "logits of a pass": passes.probes * passes.positions * memory.position,
        "code, workspace": PAGES,
        "rows": examples * ROW_BYTES,
        # Live and best values, and the rows of a pass.
        "values": sensitive_entries(shape) * 4 * (2 + probes),
        f"estimator ({estimator})": _estimator_bytes(shape, settings, examples),
    }
    tokens, answers = rows * length, rows
    operations = 2 * (shape.linear_weights * (1 + COLUMN_SHARE) * tokens + head * answers)
    return Estimate("tuning", components, forwards * operations / (speed * INT4_SPEED))


def estimate_writing(
    shape: ModelShape,
    *,
    tokens: int = 512,
    engine: str | None = None,
    reading: float,
) -> Estimate:
    """Peak resident memory of writing a text of ``tokens``, and seconds of one token: each reads
    all weights and, half-way through the text, half of its keys and values.

    Args:
        reading: of the machine, as of ``sizes.measure_reading``.

    Raises:
        EngineError: as ``estimate_tuning``.
    """
    engine = engine or next(iter(ENGINES))
    memory = _pass_memory(shape)
    opened = _opened(shape, engine, tokens)
    components = {
        **opened,
        # As the program returns them, and as the text holds them.
        "float columns with the values in them": 2 * opened["float columns"],
        "keys and values": 4 * shape.cache_width * tokens,
        "activations of a pass": min(tokens, CHUNK) * memory.token + memory.position,
        "code, workspace": PAGES,
    }
    read = opened["packed matrices and head"] + opened["float columns"]
    read += components["keys and values"] // 2
    seconds = read / (reading * TOKEN_READING)
    return Estimate("writing", components, seconds)


def _pass_memory(shape: ModelShape) -> PassMemory:
    info = terms_of(shape)
    return PassMemory.of(
        hidden=shape.hidden,
        widest=max(shape.hidden, shape.intermediate),
        vocabulary=shape.vocabulary,
        adapter=(shape.hidden, TAPPED * shape.hidden),
        terms=info.shapes(shape.hidden) if info else (),
    )


def _opened(shape: ModelShape, engine: str, tokens: int) -> dict[str, int]:
    """Of a process that has opened a bundle and read so many tokens, without what a pass takes."""
    bundle = estimate_bundle(shape).components
    table = shape.vocabulary * (shape.hidden + 4)
    return {
        f"process ({engine})": engine_module(engine).PROCESS_BYTES - COUNTED_BEFORE,
        "command line": COMMAND_LINE,
        "tokenizer": PIECE_KEPT * tokenizer_pieces(shape),
        "bundle": bundle["sensitive values and positions"],
        # XNNPACK packs them into memory of its own and gives the file's pages back.
        "packed matrices and head": bundle["int4 matrices"] + bundle["int4 head"],
        "float columns": bundle["float columns"],
        "embedding table": _table_pages(table, tokens),
        "adapter and terms": _pass_memory(shape).tables - table,
    }


def _table_pages(table: int, tokens: int) -> int:
    """Bytes of the embedding table that so many tokens of English text bring in.

    Different tokens grow by Heaps' law, and several may lie in what is read around one of them;
    fitted to film reviews and Wikipedia in the vocabularies of SmolLM2 and Gemma 3.
    """
    return int(table * (1 - math.exp(-1.1 * tokens**0.62 * READ_AROUND / table)))


def _estimator_bytes(shape: ModelShape, settings: Settings, examples: int) -> int:
    """What it holds of ``examples``, that choose between two answers if it learns from such."""
    # The program returns the last token's hidden state of two blocks and a mean of one.
    width = HIDDEN_STATES * shape.hidden
    text, info = text_shape(shape.hidden), terms_of(shape)
    terms = None
    if info is not None:
        terms = BlockTerms(info, shape.hidden, (), _not_there, _not_there, _not_there)
    learned = TextHead(text, shape.vocabulary, _not_there, partial(_words, shape), terms)
    kinds: dict[str, PartKind] = {
        answer_head.KIND: AnswerHeads(),
        text_part.KIND: TextHeads(learned),
    }
    context = RunContext(
        answers=2,
        head_rows=2,
        hidden_width=width,
        examples=examples,
        entries=1,
        writes=True,
        labels=("0", "1"),
        parts=kinds,
        kinds=kinds,
        blocks=np.sort(np.arange(sensitive_entries(shape)) % shape.blocks),
        block_count=shape.blocks,
    )
    part = restored(kinds, part_of(settings, context))
    held = make_estimator(settings, shape_of(settings, context), part).memory_bytes(examples)
    held += spec_of(settings.estimator).holds(context)
    if part is None:
        return held
    if part.enters_program:
        bases = 4 * (TAPPED * shape.hidden * text[1] + shape.hidden * text[0])
        words = int(shape.vocabulary * shape.hidden * INT4_BYTES)
        below = terms.memory_bytes if terms else 0
        return held + text_frame_bytes(shape.hidden) + bases + words + TEXT_WORK + below
    # An answer head keeps the state of one position of each held-out row: of all, at most.
    return held + min(MOST_BYTES, 4 * examples * (width + 1))


def _words(shape: ModelShape) -> WordTable:
    """Of the right sizes, which take no memory."""
    codes = np.broadcast_to(np.zeros(1, np.uint8), (shape.vocabulary, shape.hidden // 2))
    scales = np.broadcast_to(np.zeros(1, np.uint16), (shape.vocabulary, shape.hidden // 32))
    return WordTable(codes, scales)


def _not_there(*given: object) -> NoReturn:
    raise AssertionError("of a bundle that is not made yet, sizes alone count")
