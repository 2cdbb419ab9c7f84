"""``seedtune serve`` as a process: many clients, those who hang up, its end, and its sockets."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from urllib.request import Request, urlopen

from crowd import crowd
from serving import served_process
from traced import needs_strace, traced


def resident(pid):
    """Bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def ask(url, prompt="It was"):
    asked = {"model": "hf", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    request = Request(
        f"{url}/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def test_64_clients_half_of_which_hang_up(bundle):
    with served_process(bundle.path, "--max-waiting", 40) as (url, process):
        before = ask(url)
        asyncio.run(crowd(url, "hf", 64, 3))
        held = resident(process.pid)
        found = asyncio.run(crowd(url, "hf", 64, 9))
        assert set(found) <= {"answered", "hung_up", "refused"}, found
        assert found["answered"] > 20 and found["hung_up"] > 20, found
        assert resident(process.pid) < held + 10 * 2**20
        assert ask(url) == before


def test_the_end_does_not_wait_for_an_answer(bundle):
    """Two texts without an end: one under way and one that waits for it."""
    with served_process(bundle.path) as (url, _):
        asked = {"model": "hf", "prompt": "It was", "max_tokens": 2**20, "stream": True}
        host, port = re.findall(r"//(.*):(\d+)", url)[0]
        content = json.dumps(asked).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json"
        for _ in range(2):
            client = socket.create_connection((host, int(port)))
            client.sendall(f"{head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        time.sleep(0.2)


@needs_strace
def test_there_is_no_socket_but_its_own_port(bundle, tmp_path):
    (tmp_path / "job.py").write_text(
        "import os, pathlib, sys\n"
        "pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "from seedtune.host_tools.cli import app\n"
        "app(['serve', sys.argv[1], '--port', sys.argv[2], '--threads', '1'])\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done: Future[object] = Future()

    def client():
        try:
            url = f"http://127.0.0.1:{port}/v1"
            for _ in range(300):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.2)
            done.set_result(ask(url))
        except BaseException as error:
            done.set_exception(error)
        finally:
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)

    thread = threading.Thread(target=client)
    thread.start()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    found = traced([sys.executable, "job.py", str(bundle.path), str(port)], tmp_path, environment)
    thread.join()
    assert done.result()
    # What goes to a socket that is connected: answers, and what wakes the event loop.
    opened = [line for line in found.sockets if not re.search(r"sendto\(.*NULL, 0", line)]
    made, bound = opened
    assert "socket(AF_INET, SOCK_STREAM" in made and f"htons({port})" in bound, opened
    assert 'inet_addr("127.0.0.1")' in bound
    assert found.outside(tmp_path, Path.home() / ".cache" / "seedtune") == []
