"""Places on the Hugging Face hub, ``hf://[datasets/]owner/name[@revision][/path]``, as files here.

``huggingface_hub`` downloads into its own cache and obeys its own variables (``HF_HOME``,
``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``). It is optional, and imported when a place is
named: nothing else in the runtime needs it.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import DownloadError

_SHOWN = 8
_NOT_FOUND = "no such repository, or a private one: check the name, or type 'hf auth login'"
_LOCAL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
"""Errors of the disk here, which the client also raises for others of its own."""


@dataclass(frozen=True)
class Place:
    """A repository on the hub, or a file or folder in it."""

    kind: str
    """``model`` (bundles, too) or ``dataset``."""
    repository: str
    """``owner/name``."""
    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""
    path: str = ""
    """Within the repository; empty for all of it."""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{self._name}{revision}" + (f"/{self.path}" if self.path else "")

    @property
    def _name(self) -> str:
        return ("datasets/" if self.kind == "dataset" else "") + self.repository

    def pinned(self) -> "Place":
        """The same at the commit that its revision is now or, without a connection, was last.

        Raises:
            DownloadError: as ``asking``.
        """
        with asking(self):
            from huggingface_hub import HfApi

            found = HfApi().resolve_revision(
                self.repository, repo_type=self.kind, revision=self.revision
            )
            return replace(self, revision=found.resolved)

    def file(self, name: str = "") -> Path:
        """A file here: the one at ``path``, or the one called ``name`` below it.

        Raises:
            DownloadError: there is none, or as ``asking``.
        """
        wanted = "/".join(filter(None, (self.path, name)))
        if not wanted:
            raise DownloadError(f"{self}: name a file in it{self._files()}")
        with asking(replace(self, path=wanted)):
            from huggingface_hub import hf_hub_download

            return Path(
                hf_hub_download(
                    self.repository, wanted, repo_type=self.kind, revision=self.revision
                )
            )

    def folder(self, patterns: Sequence[str]) -> Path:
        """A folder here, with its files whose names match ``patterns``; none of folders in it.

        Raises:
            DownloadError: there are none, or as ``asking``.
        """
        below = f"{self.path}/" if self.path else ""
        with asking(self):
            from huggingface_hub import snapshot_download

            found = snapshot_download(
                self.repository,
                repo_type=self.kind,
                revision=self.revision,
                allow_patterns=[below + pattern for pattern in patterns],
                ignore_patterns=[below + "*/*"],
            )
        folder = Path(found) / self.path
        if not folder.is_dir():
            raise DownloadError(f"{self}: no {' or '.join(patterns)} there{self._files()}")
        return folder

    def _files(self) -> str:
        """The repository's files as the end of an error's message; nothing if it does not tell."""
        with suppress(Exception):
            from huggingface_hub import HfApi

            names = HfApi().list_repo_files(
                self.repository, repo_type=self.kind, revision=self.revision
            )
            more = ", ..." if len(names) > _SHOWN else ""
            return f"; there are: {', '.join(sorted(names)[:_SHOWN])}{more}"
        return ""


def place_of(source: str | Path) -> Place | None:
    """The place that ``source`` names; None of a path here.

    Raises:
        DownloadError: it begins as one and is none, or ``huggingface_hub`` is not installed.
    """
    text = source if isinstance(source, str) else source.as_posix()
    if not text.startswith("hf:/"):
        return None
    text = f"hf://{text.removeprefix('hf:').lstrip('/')}"  # a Path has lost one of the slashes
    try:
        from huggingface_hub import parse_hf_uri

        found = parse_hf_uri(text)
    except ImportError as error:
        raise _lacking(text) from error
    except ValueError as error:
        raise DownloadError(
            f"{text}: must be hf://owner/name or hf://datasets/owner/name, with @revision and "
            f"/path behind it where need be ({getattr(error, 'msg', error)})"
        ) from error
    if found.type not in ("model", "dataset"):
        raise DownloadError(f"{text}: is a {found.type}; give a model, bundle or dataset")
    if ".." in found.path_in_repo.split("/"):
        raise DownloadError(f"{text}: a path must not go up (..)")
    return Place(found.type, found.id, found.revision, found.path_in_repo.rstrip("/"))


def local_file(source: str | Path) -> Path:
    """``source`` as a path; of a place on the hub, the file there, downloaded unless it is cached.

    Raises:
        DownloadError: as ``Place.file``.
    """
    place = place_of(source)
    return Path(source) if place is None else place.file()


@contextmanager
def asking(place: Place) -> Iterator[None]:
    """Turn what the hub and its client raise into one line that names ``place`` and the remedy.

    Raises:
        DownloadError: the client is not installed; no such repository, revision or file; the token
            does not do; no connection, or it was lost; not cached and offline; the disk is full.
    """
    try:
        yield
    except DownloadError:
        raise
    except ImportError as error:
        raise _lacking(place) from error
    except Exception as error:  # of the client and of three libraries below it
        raise DownloadError(f"{place}: {_reason(place, error)}") from error


def _lacking(place: Place | str) -> DownloadError:
    return DownloadError(f"{place}: needs huggingface_hub: pip install 'seedtune[hub]'")


def _reason(place: Place, error: BaseException) -> str:
    from huggingface_hub import constants, errors

    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)

    def caused(kind: type[BaseException]) -> bool:
        return any(isinstance(each, kind) for each in causes)

    if caused(errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{place._name}"
        return f"is gated: ask for access at {page}, then type 'hf auth login'"
    if caused(errors.RepositoryNotFoundError):
        return _NOT_FOUND
    if caused(errors.RevisionNotFoundError):
        return "no such revision: check what stands behind the @"
    if caused(errors.RemoteEntryNotFoundError):
        return f"no such file{place._files()}"
    if caused(errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and not all of it is in the cache: unset it to ask the hub"
    for each in causes:
        if isinstance(each, errors.HfHubHTTPError):
            return _refused(each.response.status_code, each.response.headers)
        if isinstance(each, OSError) and each.errno in _LOCAL:
            told = f"{each.filename or constants.HF_HUB_CACHE}: {os.strerror(each.errno)}"
            return f"cannot be kept here ({told}): make room, or set HF_HOME to another folder"
    first = next(iter(str(causes[-1]).strip().splitlines()), "")[:200]
    told = f"{type(causes[-1]).__name__}: {first}"
    return f"the hub's client failed ({told}): check the connection and try again"


def _refused(status: int, headers: Mapping[str, str]) -> str:
    if status == 401 and not headers.get("X-Error-Message", "").startswith("Invalid credentials"):
        return _NOT_FOUND  # who has no token is not told which
    if status == 401:
        return "the hub does not know the token: type 'hf auth login', or mend HF_TOKEN"
    if status == 403:
        return "the token has no right to do so: type 'hf auth login' with one that has"
    return f"the hub answered with status {status}: try again later"
