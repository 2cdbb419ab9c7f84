"""The command that answers over HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from seedtune.runtime.errors import SeedtuneError

from .inputs import checked_model
from .options import BundleHash, BundlePath, EngineName, MemoryLimit, OnLong, Threads
from .output import Output

if TYPE_CHECKING:
    import uvicorn

CONNECTIONS = 256
"""At once; more are told that the server is busy."""


def serve(
    bundle: BundlePath,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", help="Serve the best values of this run folder, too; repeatable."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer only to who sends the token in this file."),
    ] = None,
    max_body: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="Bytes of a request, at most.")
    ] = 1_000_000,
    max_prompt: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Tokens of a prompt, at most.",
            show_default="what the bundle can read",
        ),
    ] = None,
    max_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds of a request with its waiting; then it is cut."),
    ] = 300.0,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait for the one under way.")
    ] = 32,
    on_long: OnLong = "error",
    memory_limit: MemoryLimit = None,
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
) -> None:
    """Answer OpenAI's clients over HTTP, with the bundle as exported and with each of its runs.

    Ctrl-C or SIGTERM end it.
    """
    try:
        from ..serve.answering import Models
        from ..serve.app import Limits, make_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise SeedtuneError("this needs its extra: pip install 'seedtune[serve]'") from error

    output = Output(False)
    token = None if token_file is None else _token(token_file)
    local = _is_local(host)
    if not local and token is None:
        raise SeedtuneError(
            f"--host {host}: others could ask, so give a --token-file with a token that they need"
        )
    limits = Limits(max_body, max_prompt, max_seconds, max_waiting)
    with (
        _listening(host, port) as listener,
        checked_model(
            bundle,
            output,
            memory_limit=memory_limit,
            engine=engine,
            threads=threads,
            sha256=sha256,
            on_long=on_long,
        ) as model,
    ):
        models = Models(model, runs or [])
        _ = model.engine  # so that the first client need not wait for it
        hosts = {host, "localhost", "127.0.0.1", "::1"} if local else None
        app = make_app(models, limits, token=token, hosts=hosts)
        listener.listen()  # before it is said
        output.note(f"{_url(listener)} serves {', '.join(models.names)}; Ctrl-C ends it")
        try:
            with contextlib.suppress(KeyboardInterrupt):  # it ended well before it was raised again
                server_of(app).run([listener])
        finally:
            app.state.worker.close()


def server_of(app: Any) -> uvicorn.Server:
    """Runs an application, silently but for warnings."""
    import uvicorn

    class Server(uvicorn.Server):
        """Does not wait for long answers when it is to end."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.worker.end()
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
    )


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """A socket, taken before a bundle is checked, which may take long."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        return found
    except OSError as error:
        found.close()
        raise SeedtuneError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); "
            "take another port, or 0 for a free one"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _token(file: Path) -> str:
    try:
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise SeedtuneError(f"{file}: cannot be read: {error}") from error
    if not found or not found.isascii() or not found.isprintable():
        raise SeedtuneError(f"{file}: must hold a token of printable ASCII characters")
    return found
