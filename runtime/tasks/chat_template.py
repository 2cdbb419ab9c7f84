"""A model's own chat template: messages to the text that the model was trained to see.

Templates are Jinja, rendered as transformers renders them (``chat_template_utils``): sandboxed,
blocks trimmed. Rendering them once at export into plain pieces would do for few: many look at the
first message, strip texts or refuse an order of roles. jinja2 takes 8 MB, and only where a
conversation is rendered.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..errors import DataError
from .field_text import check_characters, described
from .row_formats import strict_json

Message = Mapping[str, Any]
"""``role`` and ``content``, both text, and what else a template reads; ``name`` for a sender."""
ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """Renders messages.

    Args:
        source: the Jinja template.
        special_tokens: what it may name, such as ``bos_token``.

    Raises:
        DataError: jinja2 is not installed, or the template is none.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self.special_tokens = source, dict(special_tokens)
        self._compiled = _compile(source)

    def render(self, messages: Sequence[Message], *, answer: bool, where: str) -> str:
        """The text of ``messages``; with ``answer`` also what an answer follows.

        Raises:
            DataError: the template refuses them; the message begins with ``where``.
        """
        try:
            text = self._compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer,
                **self.special_tokens,
            )
        except Exception as error:  # a template may raise whatever an expression can
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"{where}: the model's chat template refuses it: {reason}") from error
        check_characters(str(text), f"{where}: what the model's chat template makes of it")
        return str(text)


def checked_messages(value: Any, where: str) -> list[dict[str, Any]]:
    """Messages as a row or a caller gives them.

    Raises:
        DataError: no list, empty, or one of them is no message: of another role than ``ROLES``, or
            with content that is no text.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = strict_json(value, f"{where}: messages")  # tables hold lists as JSON
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise DataError(f"{where}: messages must be a list, not {described(value)}")
    if not value:
        raise DataError(f"{where}: messages is an empty list")
    for number, message in enumerate(value):
        what = f"{where}: messages[{number}]"
        if not isinstance(message, Mapping):
            raise DataError(f"{what} must be an object, not {described(message)}")
        for field in ("role", "content"):
            if field not in message:
                raise DataError(f"{what} has no {field!r}")
            if not isinstance(message[field], str):
                raise DataError(f"{what}: {field!r} must be text, not {described(message[field])}")
            check_characters(message[field], f"{what}: {field!r}")
        if message["role"] not in ROLES:
            raise DataError(
                f"{what}: role {message['role'][:40]!r} is unknown; roles: {', '.join(ROLES)}"
            )
    return [dict(message) for message in value]


def _compile(source: str) -> Any:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise DataError(
            "chat templates need jinja2, which is not installed; pip install 'seedtune[chat]'"
        ) from error

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # transformers marks the assistant's part with a tag of its own.
    plain = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
    plain = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", plain)
    try:
        return environment.from_string(plain)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"the bundle's chat template cannot be read: {reason}") from error
