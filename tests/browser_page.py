"""The example page in headless Chromium: served from a copy, driven by ``drive_page.mjs``."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from doc_pages import ROOT
from seedtune.runtime.files import default_cache, replace_folder, workplace

PAGE = ROOT / "examples" / "browser"
_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """The page, open in a browser."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self._process, self.address = process, address

    def open(self, control: str, folder: Path) -> str:
        """Choose a folder; what the page says."""
        return self._said(self._do("open", control=control, folder=str(folder)))

    def refuses(self, control: str, folder: Path) -> str:
        """Choose a folder that is refused; the one line that the page says."""
        found = self._do("open", control=control, folder=str(folder))
        assert found["failed"], found["text"]
        assert "\n" not in found["text"]
        return str(found["text"])

    def ask(self, **fields: str) -> dict[str, tuple[float, float]]:
        """Share and log-probability by label."""
        text = self._said(self._do("ask", fields=fields))
        answers = {}
        for line in text.splitlines():
            label, _, rest = line.partition(" ")
            share, logp = rest.split(": ")[1].split(", log-probability ")
            answers[label] = (float(share), float(logp))
        return answers

    def refuses_to_answer(self, **fields: str) -> str:
        """What the page says to a question that it does not answer."""
        found = self._do("ask", fields=fields)
        assert found["failed"], found["text"]
        return str(found["text"])

    def module(self, file: str, body: str, given: Any = None) -> Any:
        """What ``body`` returns, JavaScript that sees ``module`` (a file of the page's)."""
        return self._do("module", file=file, body=body, given=given)

    def seen(self) -> dict[str, list[str]]:
        """Addresses that were asked for (``asked``), and errors that nothing caught."""
        found: dict[str, list[str]] = self._do("seen")
        return found

    @staticmethod
    def _said(found: dict[str, Any]) -> str:
        assert not found["failed"], found["text"]
        return str(found["text"])

    def _do(self, action: str, **given: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"action": action, **given}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the browser ended"
        answer = json.loads(line)
        assert "error" not in answer, answer
        return answer["value"]


@contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """Serve a copy of the page from ``folder`` and open it.

    Skips where Chromium, node or the page's packages cannot be had, and says why.
    """
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("no npm: apt-get install npm")
    modules = _modules()
    folder.mkdir()
    for file in PAGE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(modules)
    handler = functools.partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    script = Path(__file__).with_name("drive_page.mjs")
    process = subprocess.Popen(
        ["node", str(script), str(modules), address, browser],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Page(process, address)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # it then closes the browser and ends
        try:
            process.wait(20)
        finally:
            process.kill()
            server.shutdown()
            server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *given: Any) -> None:
        pass


def _modules() -> Path:
    """The page's packages as its lock file pins them, kept in the cache."""
    lock = (PAGE / "package-lock.json").read_bytes()
    target = default_cache() / "browser" / hashlib.sha256(lock).hexdigest()[:16]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with workplace(target) as work:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(PAGE / name, work)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(
                command, cwd=work, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                env={**os.environ, "npm_config_cache": str(work / "cache")},
            )  # fmt: skip
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
                pytest.skip(f"npm cannot install the page's packages: {lines[0][:300]}")
            (work / "kept").mkdir()
            (work / "node_modules").rename(work / "kept" / "node_modules")
            replace_folder(work / "kept", target)
    return target / "node_modules"
