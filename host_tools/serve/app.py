"""The interface over HTTP: who may ask, how much at once, and how an answer is sent."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from seedtune.runtime.errors import DataError, SeedtuneError
from seedtune.runtime.tasks.row_formats import strict_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from . import fields, forms
from .answering import Models, answer, predict
from .refusal import Refusal
from .worker import Worker

_LOG = logging.getLogger("seedtune")


@dataclass(frozen=True)
class Limits:
    """What one client may take."""

    body: int = 1_000_000
    """Bytes of a request."""
    prompt: int | None = None
    """Tokens of a prompt; None: what fits."""
    seconds: float = 300.0
    """That a request takes, its waiting included. A text that is being written is cut then."""
    waiting: int = 32
    """Requests that wait for the one under way."""


def make_app(
    models: Models, limits: Limits, *, token: str | None = None, hosts: Iterable[str] | None = None
) -> Starlette:
    """The application.

    Args:
        token: that clients must send, if any.
        hosts: names under which it may be asked; None: under any. A page in a browser can make any
            name of its own lead to this machine.
    """
    worker = Worker(limits.waiting, limits.seconds)
    began = int(time.time())

    def shown(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": began, "owned_by": "seedtune"}

    async def list_models(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(map(shown, models.names))})

    async def one_model(request: Request) -> JSONResponse:
        name = request.path_params["name"]
        _ = models[name]
        return JSONResponse(shown(name))

    async def chat(request: Request) -> _Answer:
        return text(fields.chat(await _body(request, limits)), forms.Chat)

    async def completion(request: Request) -> _Answer:
        return text(fields.completion(await _body(request, limits)), forms.Completion)

    def text(asked: fields.Asked, form: type[forms.Form]) -> _Answer:
        _ = models[asked.model]
        made = form(asked.model, asked.usage)
        parts = worker.pieces(lambda left: answer(models, asked, limits.prompt, left))
        return _Answer(parts, made.whole, made.events if asked.stream else None, limits.seconds)

    async def prediction(request: Request) -> _Answer:
        asked = fields.prediction(await _body(request, limits))
        _ = models[asked.model]
        parts = worker.pieces(lambda left: predict(models, asked, left))
        return _Answer(parts, lambda found: next(iter(found)), None, limits.seconds)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return _refused(error)

    app = Starlette(
        routes=[
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
            Route("/v1/predict", prediction, methods=["POST"]),
        ],
        exception_handlers=dict.fromkeys(
            (HTTPException, Refusal, SeedtuneError, Exception), refused
        ),
    )
    app.add_middleware(_Guard, token=token, hosts=None if hosts is None else set(hosts))
    app.state.worker = worker
    return app


class _Guard:
    """Lets pass who has the token and asks this machine by its own name."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: set[str] | None) -> None:
        self._app, self._hosts = app, hosts
        self._expected = None if token is None else b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        refusal = None
        if self._hosts is not None and _name(headers.get(b"host", b"")) not in self._hosts:
            refusal = Refusal(400, "the header Host names another machine", code="wrong_host")
        elif self._expected is not None and not hmac.compare_digest(
            headers.get(b"authorization", b""), self._expected
        ):
            refusal = Refusal(
                401,
                "the header Authorization must be 'Bearer TOKEN' with this server's token",
                kind="authentication_error",
                code="invalid_api_key",
            )
        await (self._app if refusal is None else _refused(refusal))(scope, receive, send)


def _name(host: bytes) -> str | None:
    try:
        return urlsplit(f"//{host.decode('ascii')}").hostname
    except ValueError:
        return None


async def _body(request: Request, limits: Limits) -> Any:
    """What the body says, as JSON.

    Raises:
        Refusal: too long, too slow, or of another type.
        DataError: no JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal(415, "the body must be JSON, with Content-Type: application/json")
    found = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                found += part
                if len(found) > limits.body:
                    raise Refusal(413, f"the body has more than {limits.body} bytes")
    except TimeoutError:
        raise Refusal(408, f"the body did not come in {limits.seconds:g} s") from None
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8 (byte {error.start})") from None
    return strict_json(text, "the body")


def _refused(error: Exception) -> JSONResponse:
    """An error as a client reads it."""
    headers = {}
    if isinstance(error, HTTPException):
        error = Refusal(error.status_code, error.detail)
    elif isinstance(error, DataError):
        error = Refusal(400, str(error))
    elif isinstance(error, SeedtuneError):
        error = Refusal(500, str(error), kind="server_error")
    elif not isinstance(error, Refusal):
        _LOG.error("an answer failed", exc_info=error)
        error = Refusal(500, "an error of the server's own; its log says more", kind="server_error")
    if error.status in (429, 503):
        headers["Retry-After"] = "1"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


class _Answer:
    """Sends an answer, and leaves as soon as the client does.

    Args:
        whole: makes one object of all parts.
        events: makes events of each, if they are to be sent one by one.
        seconds: that an answer takes; who has not read it after as many more is gone.
    """

    def __init__(
        self,
        parts: AsyncGenerator[Any],
        whole: Callable[[list[Any]], dict[str, Any]],
        events: Callable[[Any], Iterator[dict[str, Any]]] | None,
        seconds: float,
    ) -> None:
        self._parts, self._whole, self._events, self._seconds = parts, whole, events, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._events is None:
            await self._while_there(receive, self._send_whole(scope, receive, send))
        else:
            await self._while_there(receive, self._send_events(scope, receive, send, self._events))

    async def _while_there(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        tasks = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait(
                tasks, timeout=2 * self._seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not tasks[0].cancelled() and (failed := tasks[0].exception()) is not None:
            raise failed

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._parts) as parts:
                found = [part async for several in parts for part in several]
                response = JSONResponse(self._whole(found))
        except Exception as error:
            response = _refused(error)
        await response(scope, receive, send)

    async def _send_events(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        events: Callable[[Any], Iterator[dict[str, Any]]],
    ) -> None:
        begun = False
        async with aclosing(self._parts) as parts:
            try:
                async for several in parts:
                    if not begun:
                        await send(_STREAM)
                        begun = True
                    told = [event for part in several for event in events(part)]
                    await _send(send, *(json.dumps(each, ensure_ascii=False) for each in told))
            except Exception as error:
                response = _refused(error)
                if not begun:
                    await response(scope, receive, send)
                    return
                await _send(send, bytes(response.body).decode())
        await _send(send, "[DONE]", more=False)


_STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
    ],
}


def _send(send: Send, *events: str, more: bool = True) -> Awaitable[None]:
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    return send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
