"""Tasks: what is asked of the model, and how its answer is scored. A specification is a dict::

{"kind": "classification", "template": "{text} It was", "label_field": "label",
 "verbalisers": {"1": " great", "0": " terrible"}}
{"kind": "multiple_choice", "template": "{premise} so", "choice_fields": ["choice1", "choice2"],
 "label_field": "label"}
{"kind": "completion", "template": "{prompt}", "completion_field": "completion", "end": true}
{"kind": "chat", "messages_field": "messages", "learn": "assistant"}
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from tokenizers import Tokenizer

from ..bundle import Bounds, Bundle
from ..bundle.parts import ChatPart
from ..errors import DataError
from ..hub import local_file
from .chat import Chat
from .chat_template import ChatTemplate
from .classification import Classification
from .completion import Completion
from .field_checks import described
from .multiple_choice import MultipleChoice
from .row_formats import strict_json
from .rows import (
    Rows,
    encode_questions,
    encode_rows,
    need_labels,
    read_rows,
    warn_of_examples,
)
from .task import Batch, Encoded, Observation, OnLong, Prediction, Setting, Task
from .tokenising import watched

__all__ = [
    "Batch",
    "Encoded",
    "Observation",
    "OnLong",
    "Prediction",
    "Rows",
    "Task",
    "check_spec",
    "encode_questions",
    "encode_rows",
    "need_labels",
    "read_rows",
    "read_spec",
    "task_for",
    "task_from_spec",
    "warn_of_examples",
    "writes_text",
]

_KINDS: dict[str, type[Task]] = {
    "classification": Classification,
    "multiple_choice": MultipleChoice,
    "completion": Completion,
    "chat": Chat,
}


def task_for(
    bundle: Bundle,
    spec: Mapping[str, Any] | None = None,
    *,
    on_long: OnLong = "error",
    bounds: Bounds | None = None,
) -> Task:
    """The task ``spec``, or the bundle's own, on the bundle's tokenizer, ends and chat template.

    Args:
        bounds: in place of the bundle's.

    Raises:
        DataError: neither is there, or see ``task_from_spec``.
    """
    spec = bundle.task if spec is None else spec
    if spec is None:
        raise DataError(
            f"{bundle.path}: the bundle has no task; give one (--task NAME or --task FILE)"
        )
    return task_from_spec(
        spec,
        bundle.tokenizer(),
        bounds or bundle.bounds,
        bundle.pad_id,
        on_long=on_long,
        chat=bundle.chat,
        ends=bundle.end_ids,
    )


def task_from_spec(
    spec: Mapping[str, Any],
    tokenizer: Tokenizer,
    bounds: Bounds,
    pad_id: int,
    *,
    on_long: OnLong = "error",
    chat: ChatPart | None = None,
    ends: Sequence[int] = (),
) -> Task:
    """Build a task from its specification.

    Args:
        bounds: of the program that will score it; examples beyond them are refused.
        on_long: ``truncate`` drops text from the end of the longest template field of an example
            that exceeds ``bounds.length``, and keeps the template's own text.
        chat: the model's chat template, for kinds whose rows are conversations.
        ends: tokens with which the model ends a text.

    Raises:
        DataError: see ``check_spec``; or two answers begin alike to the tokenizer.
    """
    check_spec(spec)
    known = get_args(OnLong)
    if on_long not in known:
        raise DataError(f"on_long {on_long!r} is unknown; use {' or '.join(known)}")
    template = None
    if chat is not None and _KINDS[spec["kind"]].of_conversations:
        made = chat
        template = watched(
            lambda _: ChatTemplate(made.template, made.special_tokens, tokenizer), "task"
        )
    setting = Setting(tokenizer, bounds, pad_id, on_long, template, tuple(ends))
    return watched(lambda _: _KINDS[spec["kind"]](spec, setting), "task")


def read_spec(source: str | Path) -> dict[str, Any]:
    """The specification in a JSON file, here or on the hub (see ``hub``).

    Raises:
        DataError: it cannot be read, or holds none (see ``check_spec``); the message names it.
        DownloadError: the hub does not deliver it.
    """
    path = local_file(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a task specification ({error})") from error
    spec = strict_json(text, str(path))
    try:
        check_spec(spec)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return dict(spec)


def check_spec(spec: object) -> None:
    """Check a specification as far as that goes without a tokenizer: before a model is loaded.

    Raises:
        DataError: it is no object, lacks a field, or has one too many or of the wrong type. One
            line that names the field, and for a misspelt one the nearest.
    """
    if not isinstance(spec, Mapping):
        raise DataError(f"task: must be an object with a field 'kind', not {described(spec)}")
    kinds = f"kinds: {', '.join(_KINDS)}"
    if "kind" not in spec:
        raise DataError(f"task: field 'kind' is missing; {kinds}")
    kind = spec["kind"]
    if not isinstance(kind, str):
        raise DataError(f"task: field 'kind' must be text, not {described(kind)}; {kinds}")
    if kind not in _KINDS:
        raise DataError(f"task: kind {kind[:40]!r} is unknown{_meant(kind, _KINDS)}; {kinds}")
    fields, optional = _KINDS[kind].fields, _KINDS[kind].optional
    for name in spec:
        if name != "kind" and name not in fields and name not in optional:
            missing = [field for field in (*fields, *optional) if field not in spec]
            raise DataError(
                f"task: field {str(name)[:40]!r} of a {kind} task is unknown"
                f"{_meant(str(name), missing)}; fields: {', '.join((*fields, *optional))}"
            )
    for name, check in (*fields.items(), *optional.items()):
        if name not in spec:
            if name in optional:
                continue
            raise DataError(f"task: field {name!r} of a {kind} task is missing")
        check(name, spec[name])


def writes_text(spec: Mapping[str, Any]) -> bool:
    """Whether a task of a checked specification is to write, not to choose."""
    return _KINDS[spec["kind"]].writes


def _meant(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name[:40].lower(), known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
