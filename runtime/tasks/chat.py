"""Chat: one sender's turns of a conversation, as the model's own chat template writes them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import DataError
from . import field_checks
from .chat_template import ROLES, Conversation, Message, checked_messages
from .completion import TokenLoss
from .task import Encoded, Setting


class Chat(TokenLoss):
    """One row a conversation; the loss is the mean negative log-likelihood of the tokens of the
    turns to learn, with what ends each of them.

    ``learn`` is ``assistant``, or the ``name`` of a sender: the model then answers as that one,
    whose turns become the assistant's and all others the user's.

    A conversation that exceeds the length bound loses whole messages, the oldest first; a leading
    system message stays. What a message says is never a control token (see ``chat_template``).
    """

    fields: ClassVar = {
        "messages_field": field_checks.name,
        "learn": field_checks.name,
    }
    of_conversations: ClassVar[bool] = True
    ends = True

    def __init__(self, spec: Mapping[str, Any], setting: Setting) -> None:
        super().__init__(spec, setting)
        if setting.chat is None:
            raise DataError(
                "task: the bundle has no chat template, as its model had none; take a model that "
                "was made for chat, or a completion task"
            )
        self._chat = setting.chat
        self._field: str = spec["messages_field"]
        self._learn: str = spec["learn"]

    def encode(self, row: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
        messages = self._messages(row, where)
        if not any(self._learned(message) for message in messages):
            raise DataError(
                f"{where}: no message is from {self._learn[:40]!r}, the sender to learn from"
            )
        conversation = self._chat.conversation(messages)
        system = messages[:1] if messages[0]["role"] == "system" else []
        rest = messages[len(system) :]
        bound, length = self._bounds.length, 0
        for first in range(len(rest)):
            if first and rest[first]["role"] == "assistant":
                continue  # templates want a user's first, and nothing would lead to this answer
            kept = [*system, *rest[first:]]
            if not any(self._learned(message) for message in kept):
                break
            tokens, columns = self._scored(conversation, kept, where)
            length = len(tokens)
            if not columns:
                raise DataError(
                    f"{where}: the turns of {self._learn[:40]!r} are empty, so that there is "
                    "nothing to learn; fill them in or leave the row out"
                )
            if length <= bound:
                positions = [(0, column) for column in columns]
                candidates = [[tokens[column + 1]] for column in columns]
                return self._encoded([tokens], positions, candidates, 0, where)
        raise DataError(
            f"{where}: the last turns alone have {length} tokens, the program's bound is {bound}; "
            f"shorten them or export with --length {length}"
        )

    def prompt(self, row: Mapping[str, Any], where: str) -> list[int] | None:
        messages = self._messages(row, where)
        if self._learned(messages[-1]):
            return None
        return self._chat.answering(messages, where)

    def shortest_row(self) -> dict[str, Any]:
        said: list[dict[str, Any]] = [{"role": role, "content": "a"} for role in ROLES[1:]]
        said[1]["name"] = self._learn
        return {self._field: said}

    def _messages(self, row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """A row's messages, with the roles that the template is to see."""
        if self._field not in row:
            raise DataError(
                f"{where}: field {self._field!r} is missing (fields there: "
                f"{', '.join(sorted(map(str, row)))[:200] or 'none'})"
            )
        messages = checked_messages(row[self._field], f"{where}: field {self._field!r}")
        if self._learn == "assistant":
            return messages
        for message in messages:
            if message["role"] != "system":
                message["role"] = "assistant" if message.get("name") == self._learn else "user"
        return messages

    @staticmethod
    def _learned(message: Message) -> bool:
        return bool(message["role"] == "assistant")

    def _scored(
        self, conversation: Conversation, messages: list[dict[str, Any]], where: str
    ) -> tuple[list[int], list[int]]:
        """Tokens of some messages of a conversation, and the columns whose next token is one to
        learn."""
        whole = conversation.render(messages, answer=False, where=where)
        spans = []
        for number, message in enumerate(messages):
            if not self._learned(message):
                continue
            before = conversation.render(messages[:number], answer=True, where=where)
            through = conversation.render(messages[: number + 1], answer=False, where=where)
            if not (whole.startswith(through) and through.startswith(before)):
                raise DataError(
                    f"{where}: the model's chat template writes messages[{number}] in another way "
                    "once more follows, so that it cannot be learned in its place; leave out the "
                    "turns after it"
                )
            spans.append((len(before), len(through)))
        tokens, offsets = conversation.tokenise(whole, where)
        columns = [
            index - 1
            for index, (start, end) in enumerate(offsets)
            if index and end > start and any(a <= start < b for a, b in spans)
        ]
        return tokens, columns
