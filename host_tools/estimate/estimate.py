"""Memory and time that profiling, export and tuning will take, before anything is loaded.

Each estimate is a sum of named components, so that a user sees what to change. The constants below
were measured on SmolLM2-135M (Linux, x86-64, torch 2.13, executorch 1.5.1); everything else
follows from shapes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from seedtune.export.model.shape import ModelShape
from seedtune.export.profile import DEFAULT_FRACTION
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines import ENGINES, engine_module
from seedtune.runtime.engines.memory import PAGES, PassMemory
from seedtune.runtime.estimators import (
    ESTIMATORS,
    Ground,
    facts_of,
    forwards_a_step,
    make_estimator,
    with_defaults,
)
from seedtune.runtime.settings import Settings

MB = 10**6

HOST_PROCESS = 466 * MB
"""Resident size of Python with torch, transformers and the tokenizer loaded, before weights."""
LOGIT_BYTES = 17
"""Per logit while profiling: logits, log-softmax, both gradients, and the allocator's share."""
GGUF_PEAK = 2.7
"""Peak of dequantising a GGUF file, in multiples of the float32 weights. Once per file."""
INT4_BYTES = 0.5 + 2 / 32
"""Per int4 weight: half a byte, and a 2-byte scale for each group of 32."""
PROGRAM_OVERHEAD = 40_000
"""Bytes of a lowered program per matrix: graph, kernels' constants, delegate headers."""
CALIBRATION_TOKENS = 32 * 128
"""That GPTQ passes through the model at once, by default."""
TEXT_WIDTHS = 6
"""Floats that a token of it keeps at once, in widths of the widest matrix."""
ENTRY_BYTES = 48
"""Of a sensitive entry while masks are chosen: value, layer and place, twice."""
ROUNDING_BYTES = 8.4
"""Of a weight while its matrix is rounded: float32, integers, codes, and a part of it in torchao's
hands (a head of 131 million weights: 1.1 GB)."""
SECOND_MOMENTS = 28
"""Bytes of the second moments, their inverse and its factors, per pair of input columns."""
GRAPH_BYTES = 1_200_000
"""Per matrix, of the traced graph."""
LOWERED_BYTES = 2_270_000
"""Per matrix and method, of the traced and lowered graphs. SmolLM2: an export of both methods peaks
479 MB higher than one of ``score`` alone."""
METHODS = 2
"""Of ExecuTorch's program, unless it is exported with ``--context 0``."""
PROGRAM_COPIES = 1.7
"""Of the program, while it is put together."""
PROFILE_EFFICIENCY = 0.65
"""Speed of a forward and backward pass over that of one large float32 matrix product."""
INT4_SPEED = 3.4
"""Speed of the int4 kernels with 8-bit activations over a float32 product on the same cores."""
DIRECTION_TEXTS = 300
"""That directions are learned from: ``directions.task_basis.EXAMPLES``, without importing torch."""
DIRECTION_TOKENS, DIRECTION_LONGEST = 40, 100
"""Of these texts in a short prompt: a sentence of Wikipedia on average, and the longest."""
MATRICES_SHARE = 0.14
"""Of the weights, in matrices with sensitive values, by the default mask of 0.1 %."""
TOKEN_SPEED = 0.6
"""Speed of the int4 kernels on one token over that on many: the weights are read for it alone."""
CHUNK = 64
"""Tokens of a prompt in one pass: ``program.generate_program.CHUNK``, without importing torch."""
TAPPED, TEXT_ENTRIES, GENERIC_TOKENS = 2, 576 * 1152, 4096
"""Of a head for text: states that it reads, most of its weights, tokens of generic text."""
COMMAND_LINE = 16 * MB
"""Of the shell's command: typer, rich, and what it reads of rows before they are tokens."""
TOKENIZER_TIMES, TOKENIZER_ENTRY = 9, 100
"""Of a tokenizer in memory over its ``tokenizer.json``, and bytes of that for each entry of its
vocabulary where there is no file yet. SmolLM2: 32 MB of 3.5, Gemma 3: 297 MB of 33."""
SMOLLM2_TOKENIZER = 32 * MB
"""That ``HOST_PROCESS`` counts."""
COUNTED_BEFORE = 7 * MB
"""Of SmolLM2's tokenizer, in an engine's ``PROCESS_BYTES``."""
READ_AROUND = 64 * 1024
"""Bytes of the embedding table that come in when a token occurs: Linux reads around a fault."""
ROW_BYTES = 1_500
"""Of an encoded row."""
HIDDEN_STATES = 3
"""That a program returns by default."""
TEXT_WORK = 60 * MB
"""What a head for text takes besides: words in float32, logits and states of some tokens."""
EXPORT_SECONDS_PER_MATRIX = 0.5
"""Of lowering, which is bound by Python per matrix, not by its size."""


@dataclass(frozen=True)
class Estimate:
    """``components`` in bytes by name; ``seconds`` of the whole stage, or of one step of tuning."""

    stage: str
    components: dict[str, int]
    seconds: float

    @property
    def bytes(self) -> int:
        return sum(self.components.values())


def _tokenizer(shape: ModelShape) -> int:
    """Bytes of its tokenizer in memory."""
    return TOKENIZER_TIMES * (shape.tokenizer_bytes or TOKENIZER_ENTRY * shape.vocabulary)


def _host(shape: ModelShape) -> dict[str, int]:
    """What a process with torch holds before weights."""
    larger = max(0, _tokenizer(shape) - SMOLLM2_TOKENIZER)
    return {"Python, torch, transformers": HOST_PROCESS, "a larger tokenizer": larger}


def measure_speed() -> float:
    """Float32 multiply-adds counted as two operations, per second, of torch on this machine."""
    import torch

    size = 1024
    matrix = torch.ones(size, size)
    best = float("inf")
    for _ in range(8):  # the best of several: another process may hold a core for a while
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def estimate_profile(
    shape: ModelShape, *, sequences: int = 32, length: int = 128, speed: float
) -> Estimate:
    """Peak resident memory and duration of a sensitivity profile on the CPU: of its work on a
    block, or of that on the output head, whichever takes more."""
    tokens = sequences * length
    block = shape.linear_weights // shape.blocks
    kept = 8 * shape.hidden + 4 * shape.intermediate  # values for the backward pass, a token
    common = {
        **_host(shape),
        "what blocks read of all text": 4 * (shape.blocks + 2) * tokens * shape.hidden,
    }
    on_a_block = {
        **common,
        "float32 weights of a block": 4 * block,
        "their squared gradients": 4 * block,
        "one gradient, and its copy in the weight's order": 8 * shape.largest_linear,
        "activations": 4 * kept * length,
    }
    on_the_head = {
        **common,
        "embedding and head (float32)": 4 * (shape.embedding + shape.head),
        "logits": shape.vocabulary * length * LOGIT_BYTES,
    }
    most = max(on_a_block, on_the_head, key=lambda components: sum(components.values()))
    # Forward twice, gradient of inputs, gradient of weights: two operations each a weight.
    head = shape.head or shape.embedding
    operations = 2 * (4 * shape.linear_weights + 2 * head) * tokens
    return Estimate("profile", most, operations / (speed * PROFILE_EFFICIENCY))


def estimate_gguf(shape: ModelShape) -> Estimate:
    """Peak of dequantising a GGUF file for the first time; later loads come from the cache."""
    components = {
        **_host(shape),
        "dequantised weights and copies": int(shape.parameters * 4 * GGUF_PEAK),
    }
    return Estimate("first GGUF load", components, shape.parameters / 8e6)


def estimate_bundle(
    shape: ModelShape,
    *,
    fraction: float = DEFAULT_FRACTION,
    column_share: float = 0.004,
) -> Estimate:
    """Size of the exported bundle on disk.

    Args:
        fraction: of the weights that are sensitive.
        column_share: dense size of the columns kept out of int4 over that of all weights; by
            default that of the default mask on SmolLM2.
    """
    entries = max(1, round(shape.linear_weights * fraction))
    embedding = shape.embedding + shape.head
    components = {
        "int4 matrices": int(shape.linear_weights * INT4_BYTES),
        "float columns": int(shape.linear_weights * column_share * 4),
        # Gathering rows and multiplying by the head take two layouts, so tied weights are stored
        # twice: as a table and as a packed matrix.
        "embedding and head": int((embedding if shape.head else 2 * embedding) * (1 + 2 / 32)),
        "norms and biases": shape.other * 4,
        "sensitive values and positions": entries * (2 + 8),
        "program graph": len(shape.linears) * PROGRAM_OVERHEAD,
        "tokenizer": shape.tokenizer_bytes or TOKENIZER_ENTRY * shape.vocabulary,
        "frame of a text head": _text_frame_bytes(shape.hidden),
    }
    return Estimate("bundle", components, 0.0)


def _text_shape(hidden: int) -> tuple[int, int]:
    """Of a head for text: directions of what it moves, and of what it reads."""
    states = TAPPED * hidden
    kept = min(1.0, (TEXT_ENTRIES / (states * hidden)) ** 0.5)
    return max(1, int(hidden * kept)), max(1, int(states * kept))


def _text_frame_bytes(hidden: int) -> int:
    """Of the part that a head for text is learned in: bases and generic text, in float16."""
    states, (outputs, inputs) = TAPPED * hidden, _text_shape(hidden)
    return 2 * (states * inputs + hidden * outputs + GENERIC_TOKENS * (states + outputs))


def estimate_export(
    shape: ModelShape,
    *,
    rounding: str = "gptq",
    to: Sequence[str] = ("executorch",),
    fraction: float = DEFAULT_FRACTION,
    speed: float,
    **bundle_options: float,
) -> Estimate:
    """Peak resident memory and duration of an export from a profile: of choosing the sensitive
    weights, quantising, making the frame of a text head, and lowering, whichever takes the most.

    Weights stay in their files until they are used, one matrix at a time; ExecuTorch's program
    alone is made of all of them at once.

    Args:
        rounding: as of a recipe.
        to: formats of the programs.
    """
    bundle = estimate_bundle(shape, fraction=fraction, **bundle_options).components
    head = shape.head or shape.embedding
    common = {**_host(shape), "int8 embedding": int(shape.embedding * 1.01)}
    choosing = {
        **_host(shape),
        "gradients of a matrix": 2 * 4 * shape.largest_linear,
        "chosen entries": int(shape.linear_weights * fraction) * ENTRY_BYTES,
    }
    columns = {"float columns": bundle["float columns"]}
    largest = max(shape.largest_linear, head)
    quantising = {
        **common,
        **columns,
        "a matrix while it is rounded": int(ROUNDING_BYTES * largest),
    }
    if rounding == "gptq":
        widest = shape.intermediate
        quantising["calibration text"] = CALIBRATION_TOKENS * TEXT_WIDTHS * widest * 4
        quantising["second moments of an input"] = SECOND_MOMENTS * widest**2
    framing = {**common, **columns, "frame of a text head, while it is made": _framing(shape)}
    stages = [choosing, quantising, framing]
    if set(to) != {"executorch"}:
        held = {"output head": int(head * INT4_BYTES), "graph": len(shape.linears) * GRAPH_BYTES}
        stages.append({**common, **columns, **held})
    if "executorch" in to:
        stages.append(
            {
                **common,
                "int8 weights and scales": int((shape.linear_weights + head) * 1.125),
                "graphs of both methods": len(shape.linears) * METHODS * LOWERED_BYTES,
                "program and its serialised copies": int(PROGRAM_COPIES * sum(bundle.values())),
            }
        )
    most = max(stages, key=lambda components: sum(components.values()))
    operations = 2.0 * shape.linear_weights * GENERIC_TOKENS  # for the frame of a text head
    if rounding == "gptq":
        operations += 2.0 * shape.linear_weights * CALIBRATION_TOKENS
        for out, width in shape.linears.values():  # second moments, their factors, compensation
            operations += width**2 * (2.0 * CALIBRATION_TOKENS + 3.0 * width + 2.0 * out)
    seconds = operations / (speed * PROFILE_EFFICIENCY)
    return Estimate("export", most, seconds + len(shape.linears) * EXPORT_SECONDS_PER_MATRIX)


def _framing(shape: ModelShape) -> int:
    """Generic text's states thrice in float32 and once in float64, what the head reads of it, and
    eigenvectors, of so many directions as there are tokens at most."""
    states, read = GENERIC_TOKENS * TAPPED * shape.hidden, GENERIC_TOKENS * shape.hidden
    directions = min(GENERIC_TOKENS, TAPPED * shape.hidden)
    vectors = 2 * TAPPED * shape.hidden * directions if directions == GENERIC_TOKENS else 0
    return 20 * states + 16 * read + 8 * (3 * directions**2 + vectors) + TEXT_WORK


def estimate_directions(
    shape: ModelShape, *, fraction: float = DEFAULT_FRACTION, speed: float
) -> Estimate:
    """Peak resident memory and duration of learning directions for a task, after the export.

    For the default mask: one with values in every matrix adds gradients as large as the weights.
    """
    entries = max(1, round(shape.linear_weights * fraction))
    block = 8 * shape.hidden + 4 * shape.intermediate  # as in a profile
    components = {
        **_host(shape),
        "weights": shape.parameters * 4,
        "gradients of matrices with values": int(shape.linear_weights * MATRICES_SHARE * 4),
        "gradients of values": DIRECTION_TEXTS * entries * 2,
        "activations": shape.blocks * block * DIRECTION_LONGEST * 4,
        "logits and their gradient": shape.vocabulary * DIRECTION_LONGEST * 2 * 4,
    }
    head = shape.head or shape.embedding
    operations = 2 * 3 * (shape.linear_weights + head) * DIRECTION_TEXTS * DIRECTION_TOKENS
    return Estimate("directions", components, operations / (speed * PROFILE_EFFICIENCY))


def estimate_tuning(
    shape: ModelShape,
    bounds: Bounds,
    *,
    rows: int,
    length: int,
    engine: str | None = None,
    estimator: str | None = None,
    examples: int = 2000,
    fraction: float = DEFAULT_FRACTION,
    column_share: float = 0.004,
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
    settings = with_defaults(Settings(estimator=estimator, batch_size=rows))
    forwards = forwards_a_step(settings)
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
    entries = max(1, round(shape.linear_weights * fraction))
    components = {
        **_opened(shape, engine, examples * length, fraction, column_share),
        "activations of a pass": passes.probes * passes.tokens * memory.token,
        "logits of a pass": passes.probes * passes.positions * memory.position,
        "code, workspace": PAGES,
        "rows": examples * ROW_BYTES,
        # Live and best values, and the rows of a pass.
        "values": entries * 4 * (2 + probes),
        f"estimator ({estimator})": _estimator_bytes(shape, settings, examples),
    }
    tokens, answers = rows * length, rows
    operations = 2 * (shape.linear_weights * (1 + column_share) * tokens + head * answers)
    return Estimate("tuning", components, forwards * operations / (speed * INT4_SPEED))


def estimate_writing(
    shape: ModelShape,
    *,
    tokens: int = 512,
    engine: str | None = None,
    fraction: float = DEFAULT_FRACTION,
    column_share: float = 0.004,
    speed: float,
) -> Estimate:
    """Peak resident memory of writing a text of ``tokens``, and seconds of one token.

    Raises:
        EngineError: as ``estimate_tuning``.
    """
    engine = engine or next(iter(ENGINES))
    head = shape.head or shape.embedding
    memory = _pass_memory(shape)
    opened = _opened(shape, engine, tokens, fraction, column_share)
    components = {
        **opened,
        # As the program returns them, and as the text holds them.
        "float columns with the values in them": 2 * opened["float columns"],
        "keys and values": 4 * shape.cache_width * tokens,
        "activations of a pass": min(tokens, CHUNK) * memory.token + memory.position,
        "code, workspace": PAGES,
    }
    operations = 2 * (shape.linear_weights * (1 + column_share) + head)
    seconds = operations / (speed * INT4_SPEED * TOKEN_SPEED)
    return Estimate("writing", components, seconds)


def _pass_memory(shape: ModelShape) -> PassMemory:
    return PassMemory.of(
        hidden=shape.hidden,
        widest=max(shape.hidden, shape.intermediate),
        vocabulary=shape.vocabulary,
        adapter=(shape.hidden, TAPPED * shape.hidden),
    )


def _opened(
    shape: ModelShape, engine: str, tokens: int, fraction: float, column_share: float
) -> dict[str, int]:
    """Of a process that has opened a bundle and read so many tokens, without what a pass takes."""
    bundle = estimate_bundle(shape, fraction=fraction, column_share=column_share).components
    table = shape.vocabulary * (shape.hidden + 4)
    head = shape.head or shape.embedding
    return {
        f"process ({engine})": engine_module(engine).PROCESS_BYTES - COUNTED_BEFORE,
        "command line": COMMAND_LINE,
        "tokenizer": _tokenizer(shape),
        # XNNPACK packs them into memory of its own and gives the file's pages back.
        "packed matrices and head": bundle["int4 matrices"] + int(head * INT4_BYTES),
        "float columns": bundle["float columns"],
        "embedding table": _table_pages(table, tokens),
        "adapter": _pass_memory(shape).tables - table,
    }


def _table_pages(table: int, tokens: int) -> int:
    """Bytes of the embedding table that so many tokens of English text bring in.

    Different tokens grow by Heaps' law, and several may lie in what is read around one of them;
    fitted to film reviews and Wikipedia in the vocabularies of SmolLM2 and Gemma 3.
    """
    return int(table * (1 - math.exp(-4 * tokens**0.62 * READ_AROUND / table)))


def _estimator_bytes(shape: ModelShape, settings: Settings, examples: int) -> int:
    """What it holds of ``examples``, that choose between two answers if it learns from such."""
    facts = facts_of(settings)
    if facts.shape is None:
        return 0
    # The program returns the last token's hidden state of two blocks and a mean of one.
    width = HIDDEN_STATES * shape.hidden
    text = _text_shape(shape.hidden)
    ground = Ground(2, 2, width, None, examples, writes=True, text_head=text)
    estimator = make_estimator(settings, None, facts.shape(ground))
    held = estimator.memory_bytes(examples)
    if estimator.own_entries == text[0] * text[1]:
        bases = 4 * (TAPPED * shape.hidden * text[1] + shape.hidden * text[0])
        words = int(shape.vocabulary * shape.hidden * INT4_BYTES)
        held += _text_frame_bytes(shape.hidden) + bases + words + TEXT_WORK
    return held
