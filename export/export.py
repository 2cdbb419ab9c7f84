"""From a model to a bundle, the whole way on one page.

load, calibrate, profile, mask, surgery, quantise, text, lower, write: each step is one call here
and a folder or file of its own beside this one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from seedtune.runtime.bundle import (
    DEFAULT_BOUNDS,
    Adapter,
    Bounds,
    Bundle,
    Contents,
    Layer,
    TextHeadInfo,
    write_bundle,
)
from seedtune.runtime.errors import BundleError, ModelError
from seedtune.runtime.files import workplace
from seedtune.runtime.tasks import writes_text

from .lower.programs import HOLD_WEIGHTS, check_formats, lower_to
from .model.load_model import LoadedModel, load_causal_lm
from .model.mapped_pages import give_back_freed
from .model.stored_weight import Shelf, stored_modules
from .profile import DEFAULT_FRACTION, DEFAULT_MASK
from .profile.kept_profile import kept_profile
from .profile.masks import Mask, build_mask, mask_method
from .profile.profile_file import load_profile
from .program.generate_program import DEFAULT_CONTEXT
from .program.low_rank_terms import DEFAULT_RANK
from .program.prepare_program import prepare_program
from .quantise import DEFAULT_ROUNDING, check_rounding
from .quantise.int4 import DESCRIPTION
from .quantise.quantise_program import quantise_program
from .text.make_frame import find_words, make_frame, packed_words
from .text.make_terms import make_terms

Tokens = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); stages: ``load profile quantise text``, then ``programs``'."""


def export_model(
    source: str | Path | LoadedModel,
    output: str | Path,
    *,
    calibrate: Callable[[Any], tuple[Tokens, str]],
    profile: Path | None = None,
    mask: str | Mask = DEFAULT_MASK,
    fraction: float = DEFAULT_FRACTION,
    rounding: str = DEFAULT_ROUNDING,
    bounds: Bounds = DEFAULT_BOUNDS,
    context: int = DEFAULT_CONTEXT,
    terms: int | None = None,
    task: Mapping[str, Any] | None = None,
    to: Sequence[str] = ("executorch",),
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Write the bundle folder ``output`` for the model at ``source``.

    Args:
        source: Hugging Face folder, hub id or GGUF file, or the model itself, which is then
            consumed: its linears are replaced in place. Loaded as ``stored``, none of its matrices
            stands in memory for longer than it is used.
        calibrate: given the model's tokenizer, generic text as tokens int64 ``[n, length]`` and
            the SHA-256 of that text.
        profile: file of one of this model; by default what the cache keeps, made if need be.
        mask: a name (see ``profile.masks.mask_method``), or the sensitive entries themselves, for
            which nothing is profiled.
        fraction: of the linear weights that are sensitive.
        rounding: how weights become int4 (see ``quantise.quantise_program``).
        context: tokens of a text that the bundle can write, prompt and answer, as far as the model
            has positions; 0 leaves writing away.
        terms: rank of the terms of the upper blocks that a device may learn by; 0 for
            none. By default 8, and none in a bundle that does not write, or whose ``task`` is to
            choose an answer, which learns by a readout.
        task: specification that the bundle holds.
        to: formats of the programs (``lower.programs.FORMATS``), which share all else.

    Raises:
        ModelError: a format or a rounding is unknown, what writes a format is not installed, or the
            model cannot be read, is built in a way that export does not support, or is not the one
            that was profiled.
        BundleError: the folder cannot be written.
    """
    check_rounding(rounding)
    to = check_formats(to)
    progress("load", 0, 1)
    loaded = source if isinstance(source, LoadedModel) else load_causal_lm(source, "stored")
    progress("load", 1, 1)
    found = None if profile is None else load_profile(profile)
    tokens, text_sha256 = calibrate(loaded.tokenizer)
    about = {"method": "given", "fraction": fraction, "profile_sha256": None}
    if isinstance(mask, str):
        if found is None:
            found = kept_profile(
                loaded,
                tokens,
                text_sha256,
                partial(progress, "profile"),
                partial(progress, "wait for another process that profiles this model", 0, 1),
            )
        if found.model_sha256 != loaded.sha256:
            raise ModelError(f"{loaded.name}: the profile is of another model; profile this one")
        about |= {"method": mask, "profile_sha256": found.sha256}
        mask = build_mask(found, fraction, mask_method(mask, model=loaded.model))
    del found  # four bytes a weight
    give_back_freed()
    config = loaded.model.config
    bounds = with_prefix(bounds, to, context, config)
    with _workplace(Path(output)) as work:
        progress("quantise", 0, 1)
        if terms is None:
            writes = context > 0 and (task is None or writes_text(task))
            terms = DEFAULT_RANK if writes else 0
        program, surgery = prepare_program(loaded.model, mask, bounds, terms)
        shelf = Shelf(work)
        for module in stored_modules(program):
            module.rest.shelf = shelf
        quantising = partial(progress, "quantise")
        passed = quantise_program(program, surgery, rounding, tokens, quantising)
        progress("text", 0, 1)
        codes, scales = packed_words(program.head)
        framing = partial(progress, "text")
        frame = make_frame(program, tokens, surgery.values, framing, passed)
        del passed
        if frame is None:
            program.terms = None  # a device could not learn them
        made = make_terms(program, tokens, surgery.values)
        give_back_freed()
        longest = min(context, getattr(config, "max_position_embeddings", context))
        programs, files = lower_to(to, program, work, longest, progress)
        text_head = terms_info = None
        if frame is not None:
            held_in = next(work / name for name in HOLD_WEIGHTS if name in files)
            terms_info = None if made is None else made.placed(held_in)
            text_head = TextHeadInfo(
                frame.outputs.shape[1],
                frame.inputs.shape[1],
                find_words(held_in, codes, scales),
                program.softcap,
            )
        return write_bundle(
            output,
            Contents(
                programs=programs,
                files=files,
                values=surgery.values,
                indices=surgery.indices,
                layers=[Layer(*layer) for layer in surgery.layers],
                tokenizer_json=loaded.tokenizer_json,
                model={
                    "name": loaded.name,
                    **({} if loaded.origin is None else {"origin": loaded.origin}),
                    "architecture": type(loaded.model).__name__,
                    "sha256": loaded.sha256,
                    "vocab_size": config.vocab_size,
                    "hidden_size": config.hidden_size,
                    "layers": config.num_hidden_layers,
                },
                mask=about,
                quantisation={
                    **DESCRIPTION,
                    "rounding": rounding,
                    "compact_share": round(surgery.compact_share, 6),
                },
                bounds=bounds,
                pad_id=loaded.tokenizer.pad_token_id or 0,
                hidden_blocks=program.tap.blocks,
                mean_blocks=program.tap.mean_blocks,
                chat=loaded.chat,
                end_ids=loaded.end_ids,
                adapter=Adapter(program.adapter_shape[0], tuple(program.tap.blocks)),
                text_head=text_head,
                text_frame=b"" if frame is None else frame.to_bytes(),
                terms=terms_info,
                terms_part=b"" if made is None else made.part.to_bytes(),
                task=task,
            ),
        )


def with_prefix(bounds: Bounds, to: Sequence[str], context: int, config: Any) -> Bounds:
    """``bounds`` with as long a prefix as all programs of the formats ``to`` can read, which write
    texts of ``context`` tokens where they can, and as the model of ``config`` has positions for."""
    most = context if "executorch" in to else bounds.prefix  # what writes reads it there
    longest = getattr(config, "max_position_embeddings", bounds.length + bounds.prefix)
    return replace(bounds, prefix=max(0, min(bounds.prefix, most, longest - bounds.length)))


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` for what an export puts aside, gone at the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with workplace(folder) as work:
            yield work
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror or error}") from error
