"""What a client is told instead of an answer, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from seedtune.runtime.errors import one_line


class Refusal(Exception):
    """One line that names what is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        """
        Args:
            status: of HTTP.
            param: the field that is at fault.
        """
        message = one_line(message)  # some of it may be the client's
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }
