"""A small stand-in of the Hugging Face hub: what its real client asks for, over real HTTP."""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: one may write where its user ``me`` owns, the other may only read there."""
_NAME = r"(?P<id>[\w.-]+/[\w.-]+)"
_KIND = r"/api/(?P<kind>models|datasets)/"
_LARGE = (".pte", ".safetensors", ".onnx", ".gguf", ".bin", ".parquet")


@dataclass
class Repository:
    """Its commits, and what branches and tags name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def files(self) -> dict[str, bytes]:
        """Of the main branch."""
        return self.commits[self.names["main"]]

    def commit(self, files: Mapping[str, bytes]) -> str:
        found = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[found] = dict(files)
        self.names["main"] = found
        return found


class Hub:
    """What the server has and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        """By ``models/owner/name`` or ``datasets/owner/name``."""
        self.blobs: dict[str, bytes] = {}
        """Large files that were uploaded, by their SHA-256; not part of a commit yet."""
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers (in lower case) of every request."""
        self.status: int | None = None
        """Answered to everything."""
        self.cuts: dict[str, list[int]] = {}
        """Name of a file: after how many bytes of it the connection is lost, one time after the
        other."""
        self.uploads_fail = False
        self.faults: list[BaseException] = []
        """Its own: of what it was asked and does not know."""

    def add(self, name: str, files: Mapping[str, str | bytes] | Path, **how: bool) -> Repository:
        """A repository ``models/owner/name`` or ``datasets/owner/name`` with these files."""
        if isinstance(files, Path):
            files = {each.name: each.read_bytes() for each in files.iterdir() if each.is_file()}
        made = self.repositories[name] = Repository(**how)
        made.commit({n: c if isinstance(c, bytes) else c.encode() for n, c in files.items()})
        return made

    def gets(self, ending: str) -> list[dict[str, str]]:
        """Headers of the requests for the content of files so called."""
        return [
            headers
            for method, path, headers in self.asked
            if method == "GET" and "/resolve/" in path and path.endswith(ending)
        ]


class _Refused(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append((self.command, path, headers))
        body = self.rfile.read(int(headers.get("content-length", 0)))
        try:
            if self.hub.status is not None:
                raise _Refused(self.hub.status)
            self._route(path, body)
        except _Refused as refused:
            told = {"X-Error-Code": refused.code, "X-Error-Message": refused.message or None}
            self._send(b'{"error": "refused"}', refused.status, **told)

    do_HEAD = do_POST = do_PUT = do_GET

    def _send(self, body: bytes, status: int = 200, cut: int | None = None, **more: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in more.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def _json(self, found: Any) -> None:
        self._send(json.dumps(found).encode(), Content_Type="application/json")

    def _user(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in (WRITER, READER):
            raise _Refused(401, None, "Invalid credentials in Authorization header")
        return token

    def _repository(self, kind: str, name: str) -> Repository:
        user, found = self._user(), self.hub.repositories.get(f"{kind}/{name}")
        if found is None or (found.private and user is None):
            # As the real one: who has no token is not told whether there is such a thing.
            raise _Refused(401 if user is None else 404, user and "RepoNotFound")
        if found.gated:
            raise _Refused(401 if user is None else 403, "GatedRepo")
        return found

    def _may_write(self, name: str) -> None:
        if self._user() != WRITER or not name.startswith("me/"):
            raise _Refused(403, None, f"You may not write to {name}")

    def _commit(self, found: Repository, revision: str) -> str:
        commit = found.names.get(revision, revision)
        if commit not in found.commits:
            raise _Refused(404, "RevisionNotFound")
        return commit

    def _route(self, path: str, body: bytes) -> None:
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, body, **match.groupdict())
        raise AssertionError(f"the stand-in does not know {self.command} {path}")

    def _info(self, _: bytes, kind: str, id: str, revision: str | None) -> None:
        found = self._repository(kind, id)
        commit = self._commit(found, revision or "main")
        files = found.commits[commit]
        card = files.get("README.md", b"").decode().split("---\n")
        told = {"id": id, "sha": commit, "private": found.private, "tags": []}
        told["siblings"] = [{"rfilename": name} for name in files]
        told["cardData"] = yaml.safe_load(card[1]) if len(card) > 2 else None
        self._json(told)

    def _tree(self, _: bytes, kind: str, id: str, revision: str) -> None:
        found = self._repository(kind, id)
        files = found.commits[self._commit(found, revision)]
        self._json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": _sha1(data)}
                for name, data in files.items()
            ]
        )

    def _resolve(self, _: bytes, kind: str | None, id: str, revision: str, file: str) -> None:
        found = self._repository(kind or "models", id)
        commit = self._commit(found, revision)
        if file not in found.commits[commit]:
            raise _Refused(404, "EntryNotFound")
        data = found.commits[commit][file]
        told = {"ETag": f'"{_sha1(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        cuts = self.hub.cuts.get(Path(file).name) if self.command == "GET" else None
        cut = cuts.pop(0) if cuts else None
        if asked := self.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            told["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(data[begin:], 206, cut, **told)
        else:
            self._send(data, 200, cut, **told)

    def _validate(self, body: bytes) -> None:
        parts = json.loads(body)["content"].split("---\n")
        card = yaml.safe_load(parts[1])
        assert isinstance(card, dict) and parts[0] == ""
        self._json({"errors": [], "warnings": []})

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if self._user() is None:
            raise _Refused(401, None, "Invalid username or password.")
        self._may_write(name)
        told = json.dumps({"url": f"{self.hub.url}/{name}"}).encode()
        if f"models/{name}" in self.hub.repositories:
            return self._send(told, 409)
        made = self.hub.repositories[f"models/{name}"] = Repository()
        made.private = asked.get("visibility") == "private"
        made.commit({".gitattributes": b""})
        self._send(told)

    def _preupload(self, body: bytes, kind: str, id: str, revision: str) -> None:
        found = self._repository(kind, id)
        self._may_write(id)
        files = found.commits[self._commit(found, revision)]
        told = []
        for each in json.loads(body)["files"]:
            large = each["path"].endswith(_LARGE)
            there = files.get(each["path"])
            oid = None if there is None else _sha256(there) if large else _sha1(there)
            mode = "lfs" if large else "regular"
            told.append({**each, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": told})

    def _batch(self, body: bytes, id: str) -> None:
        self._may_write(id)
        objects = []
        for each in json.loads(body)["objects"]:
            told = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.url}/upload/{each['oid']}"}
                told["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}}
            objects.append(told)
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, oid: str) -> None:
        if self.hub.uploads_fail:
            self.close_connection = True  # no answer
            return
        assert _sha256(body) == oid
        self.hub.blobs[oid] = body
        self._send(b"")

    def _verify(self, body: bytes) -> None:
        asked = json.loads(body)
        assert len(self.hub.blobs[asked["oid"]]) == asked["size"]
        self._json({})

    def _write(self, body: bytes, kind: str, id: str, revision: str) -> None:
        found = self._repository(kind, id)
        self._may_write(id)
        files = dict(found.commits[self._commit(found, revision)])
        for line in body.splitlines():
            record = json.loads(line)
            value = record["value"]
            if record["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif record["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif record["key"] == "deletedFile":
                del files[value["path"]]
        commit = found.commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{id}/commit/{commit}", "commitOid": commit})


_ROUTES: list[tuple[str, Any]] = [
    (rf"{_KIND}{_NAME}(/revision/(?P<revision>[^/]+))?", _Handler._info),
    (rf"{_KIND}{_NAME}/tree/(?P<revision>[^/]+)", _Handler._tree),
    (rf"{_KIND}{_NAME}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    (rf"{_KIND}{_NAME}/commit/(?P<revision>[^/]+)", _Handler._write),
    (r"/api/validate-yaml", _Handler._validate),
    (r"/api/repos/create", _Handler._create),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (r"/upload/(?P<oid>[0-9a-f]{64})", _Handler._upload),
    (r"/verify", _Handler._verify),
    (
        rf"/((?P<kind>datasets)/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
        _Handler._resolve,
    ),
]


def _sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a port of its own."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            error = sys.exception()
            if error is not None and not isinstance(error, ConnectionError):
                hub.faults.append(error)

    with Server(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
    assert hub.faults == []


def ask(monkeypatch: pytest.MonkeyPatch, hub: Hub, home: Path, token: str | None = None) -> None:
    """Have the client in this process, which read its environment long ago, ask that hub."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    logging.get_logger()  # it keeps the stderr of now: a command's in a test is soon closed
    template = "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + template,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        assert hasattr(constants, name), name
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
