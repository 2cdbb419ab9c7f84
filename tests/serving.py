"""A server of ``seedtune serve`` in a thread of the test, and one in a process of its own."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from seedtune.runtime import Model

pytest.importorskip("starlette", reason="needs the extra 'serve'")
pytest.importorskip("uvicorn", reason="needs the extra 'serve'")

from seedtune.host_tools.commands.serve import server_of
from seedtune.host_tools.serve.answering import Models
from seedtune.host_tools.serve.app import Limits, make_app


@contextmanager
def serving(
    model: Model, runs: Sequence[Path] = (), limits: Limits | None = None, **guard: object
) -> Iterator[str]:
    """Its base URL."""
    app = make_app(Models(model, runs), limits or Limits(), **guard)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = server_of(app)
    thread = threading.Thread(target=server.run, args=([listener],))
    port = listener.getsockname()[1]
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + 20
        while app.state.worker.inside and time.monotonic() < deadline:
            time.sleep(0.01)
        assert app.state.worker.inside == 0, "a place was not freed"
    finally:
        server.should_exit = True
        thread.join()
        app.state.worker.close()


@contextmanager
def served_process(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Base URL and process of the command, which Ctrl-C must end well."""
    command = [sys.executable, "-m", "seedtune.host_tools.cli", "serve", *map(str, arguments)]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.match(r"http://[\d.:]+/v1", said)
        assert found, said + process.stderr.read()
        yield found[0], process
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        said = process.stderr.read()
        assert said == "", said
    finally:
        process.kill()
        process.wait()
