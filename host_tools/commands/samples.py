"""What a model writes to held-out prompts before and after a run, for the run's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .inputs import spaced

if TYPE_CHECKING:
    from seedtune.runtime.model import Model
    from seedtune.runtime.scoring.values import Values
    from seedtune.runtime.tasks import Encoded

SAMPLES, TOKENS = 4, 32
"""Prompts that are gone on from, and tokens of each text: some seconds at the end of a run."""


def samples_of(model: Model, examples: list[Encoded], before: Values) -> list[dict[str, str]]:
    """Prompt, the text that is really behind it, and what the model writes there under ``before``
    and under the values in use; nothing where it cannot write here, or its task writes nothing."""
    from seedtune.runtime.errors import EngineError, TuningError

    if not model.task.writes or not examples:
        return []
    chosen = spaced(examples, SAMPLES)
    prompts = [each.tokens[0, : each.positions[0, 1] + 1].tolist() for each in chosen]
    after = model.values
    try:
        model.values = before
        first = _written(model, prompts)
        model.values = after
        second = _written(model, prompts)
    except (EngineError, TuningError):  # the program only scores, or there is no memory for a text
        return []
    finally:
        model.values = after
    decode = model.bundle.tokenizer().decode
    return [
        {
            "prompt": decode(prompt),
            "right": decode(each.candidates[:, 0].tolist()),
            "before": one,
            "after": other,
        }
        for prompt, each, one, other in zip(prompts, chosen, first, second, strict=True)
    ]


def _written(model: Model, prompts: list[list[int]]) -> list[str]:
    from seedtune.runtime.writing import Manner

    writer = model.writer()
    manner = Manner(TOKENS, stop=() if model.task.ends else ("\n",))
    return ["".join(writer.write(prompt, manner)) for prompt in prompts]
