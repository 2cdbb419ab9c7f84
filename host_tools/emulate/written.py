"""What the device wrote with the tuned values, held against what this machine writes with them."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from seedtune.runtime import open_model
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.model import Model
from seedtune.runtime.tasks import Encoded
from seedtune.runtime.writing import Manner, check_prompt

from .host import EmulatorError


def prompt_tokens(bundle: Bundle, prompt: str | None, example: Encoded) -> list[int] | None:
    """Tokens behind which the device is to write; None where the bundle only scores.

    Args:
        prompt: None for what stands before the answer of ``example``.

    Raises:
        EmulatorError: a prompt for a bundle that only scores.
        DataError: the prompt is empty, or leaves no room for an answer.
    """
    if bundle.generation is None:
        if prompt is None:
            return None
        raise EmulatorError(
            f"{bundle.path}: only scores and cannot write behind a prompt; leave --prompt away or "
            "export the bundle again (--context)"
        )
    if prompt is None:
        first = example.positions[0]
        tokens: list[int] = example.tokens[first[0], : first[1] + 1].tolist()
    else:
        with open_model(bundle) as model:
            tokens = model.prompt_tokens(prompt)
    check_prompt(tokens, bundle.generation.context)
    return tokens


def compare_written(
    bundle: Bundle, run: Path, prompt: list[int], max_tokens: int, told: dict[str, Any]
) -> dict[str, Any]:
    """Write with this machine what the device wrote, greedily.

    Args:
        run: the device's.
        prompt: tokens, as both are given them.
        told: what ``tune_on_device.write`` returned.

    Returns:
        ``told`` with the number of its ``tokens``, beside ``prompt``, ``prompt_tokens``,
        ``host_text``, ``same_text`` (token by token) and ``first_difference``: None, or the
        ``token`` that differs, counted from 1, as ``device`` and ``host`` have it (None: the text
        ended there), and by how much the host's logit of its own is the larger, ``host_margin``.
    """
    with open_model(bundle) as model:
        model.load(run)
        writing = model.writer().write(prompt, Manner(max_tokens))
        host_text = "".join(writing)
        difference = _first_difference(model, prompt, told["tokens"], writing.tokens)
    return {
        "prompt": bundle.tokenizer().decode(prompt, skip_special_tokens=False),
        "prompt_tokens": len(prompt),
        **told,
        "tokens": len(told["tokens"]),
        "host_text": host_text,
        "same_text": difference is None,
        "first_difference": difference,
    }


def _first_difference(
    model: Model, prompt: list[int], theirs: list[int], ours: list[int]
) -> dict[str, Any] | None:
    pairs = enumerate(zip_longest(theirs, ours))
    found = next(((place, *pair) for place, pair in pairs if pair[0] != pair[1]), None)
    if found is None:
        return None
    place, *both = found
    text = model.engine.text(model.values.sensitive, **model.values.inputs)
    so_far = [*prompt, *ours[:place]]
    logits, part = text.read(so_far), model.values.part
    if part is not None:
        logits = part.mixed_next(logits, so_far)
    ends = sorted(model.bundle.end_ids)
    # A device may also have ended for want of memory, with a model that has no end of its own.
    marks = [token if token is not None else ends for token in both]
    margin = None if [] in marks else float(logits[marks[1]].max() - logits[marks[0]].max())
    tokenizer = model.bundle.tokenizer()
    names = [None if token is None else tokenizer.decode([token]) for token in both]
    return {
        "token": place + 1,
        "device": names[0],
        "host": names[1],
        "host_margin": margin,
    }
