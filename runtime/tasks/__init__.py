"""Tasks: what is asked of the model, and how its answer is scored. A specification is a dict::

{"kind": "classification", "template": "{text} It was", "label_field": "label",
 "verbalisers": {"0": " terrible", "1": " great"}}
{"kind": "multiple_choice", "template": "{premise} so", "choice_fields": ["choice1", "choice2"],
 "label_field": "label"}
{"kind": "completion", "template": "{prompt}", "completion_field": "completion"}
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tokenizers import Tokenizer

from ..bundle import Bounds, Bundle
from ..errors import DataError
from .classification import Classification
from .completion import Completion
from .multiple_choice import MultipleChoice
from .rows import read_rows
from .task import Batch, Encoded, Observation, Prediction, Task
from .template import Template

__all__ = [
    "Batch",
    "Encoded",
    "Objective",
    "Observation",
    "OnLong",
    "Prediction",
    "Task",
    "encode_rows",
    "read_rows",
    "task_for",
    "task_from_spec",
]

Objective = Literal["label_words", "vocabulary"]
OnLong = Literal["error", "truncate"]

_FIELDS: dict[str, dict[str, type]] = {
    "classification": {"template": str, "label_field": str, "verbalisers": dict},
    "multiple_choice": {"template": str, "choice_fields": list, "label_field": str},
    "completion": {"template": str, "completion_field": str},
}


def task_from_spec(
    spec: Mapping[str, Any],
    tokenizer: Tokenizer,
    bounds: Bounds,
    pad_id: int,
    objective: Objective = "label_words",
    on_long: OnLong = "error",
) -> Task:
    """Build a task from its specification.

    Args:
        bounds: of the program that will score it; examples beyond them are refused.
        objective: of classification: cross-entropy among the label words, or the label word's
            negative log-likelihood in the whole vocabulary.
        on_long: ``truncate`` drops text from the end of the longest template field of an example
            that exceeds ``bounds.length``, and keeps the template's own text.

    Raises:
        DataError: the specification lacks a field, has one too many or of the wrong type.
    """
    kind = spec.get("kind")
    if kind not in _FIELDS:
        raise DataError(f"task: kind {kind!r} is unknown; kinds: {', '.join(_FIELDS)}")
    for name in set(spec) ^ {"kind", *_FIELDS[kind]}:
        problem = "is unknown" if name in spec else "is missing"
        raise DataError(f"task: field {name!r} of a {kind} task {problem}")
    for name, expected in _FIELDS[kind].items():
        if not isinstance(spec[name], expected):
            raise DataError(f"task: field {name!r} must be a {expected.__name__}")
    for name in ("verbalisers", "choice_fields"):
        value = spec.get(name, [])
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        if not all(isinstance(item, str) for item in items):
            raise DataError(f"task: field {name!r} must hold text only")
    if objective not in ("label_words", "vocabulary"):
        raise DataError(f"objective {objective!r} is unknown; use label_words or vocabulary")
    if on_long not in ("error", "truncate"):
        raise DataError(f"on_long {on_long!r} is unknown; use error or truncate")
    template = Template(spec["template"])
    common = (template, tokenizer, bounds, pad_id, on_long == "truncate")
    if kind == "classification":
        return Classification(
            *common,
            label_field=spec["label_field"],
            verbalisers=spec["verbalisers"],
            whole_vocabulary=objective == "vocabulary",
        )
    if kind == "multiple_choice":
        return MultipleChoice(
            *common, choice_fields=spec["choice_fields"], label_field=spec["label_field"]
        )
    return Completion(*common, completion_field=spec["completion_field"])


def task_for(
    bundle: Bundle,
    spec: Mapping[str, Any] | None = None,
    *,
    objective: Objective = "label_words",
    on_long: OnLong = "error",
) -> Task:
    """The task ``spec`` (by default the bundle's own) on a bundle's tokenizer and bounds.

    Raises:
        DataError: there is none, or it makes no sense (see ``task_from_spec``).
    """
    spec = bundle.task if spec is None else spec
    if spec is None:
        raise DataError(f"{bundle.path}: the bundle has no task; give one (--task NAME or FILE)")
    return task_from_spec(
        spec, bundle.tokenizer(), bundle.bounds, bundle.pad_id, objective, on_long
    )


def encode_rows(
    task: Task, rows: Iterable[Mapping[str, Any]], *, labelled: bool = True
) -> list[Encoded]:
    """Rows as examples; errors name a row by its ``where`` or its number, from 1.

    Raises:
        DataError: see ``Task.encode``.
    """
    return [
        task.encode(row, getattr(row, "where", f"row {number}"), labelled=labelled)
        for number, row in enumerate(rows, 1)
    ]
