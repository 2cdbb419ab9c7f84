"""A model's chat template as a part of its bundle: a JSON object of two fields, ``template``
(Jinja) and ``special_tokens`` (what it may name, such as ``bos_token``, to text)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import BundleError
from ..schema import MapOf, check, parse_json

_LARGEST = 1 << 20


@dataclass(frozen=True)
class ChatPart:
    """Not compiled yet; see ``tasks.chat_template``."""

    template: str
    special_tokens: dict[str, str]

    def to_bytes(self) -> bytes:
        """The part."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode()


def parse_chat(data: bytes, file: Path) -> ChatPart:
    """Read the part.

    Raises:
        BundleError: too large, no JSON, or a field is missing or no text.
    """
    if len(data) > _LARGEST:
        raise BundleError(f"{file}: has {len(data)} bytes, at most {_LARGEST} are read")
    try:
        content = parse_json(data)
        check(content, {"template": str, "special_tokens": MapOf(str)})
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from error
    return ChatPart(content["template"], content["special_tokens"])
