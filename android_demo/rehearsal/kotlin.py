"""Kotlin sources to classes, by JetBrains' compiler; what is compiled stays in the cache."""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .downloads import RehearsalError, fetch, kept

_TARGET = "17"
_NO_JAVA = "the Kotlin compiler needs Java: apt-get install default-jre-headless"


def compile_kotlin(sources: Sequence[Path], against: Sequence[Path] = ()) -> Path:
    """Folder of classes. A warning counts as an error.

    Args:
        sources: files and folders of Kotlin.
        against: jars, class folders, and folders of Java sources that only say signatures.

    Raises:
        RehearsalError: there is no Java, or with the lines that the compiler says.
        DownloadError: see ``downloads.fetch``.
    """
    compiler = fetch("kotlin")
    files = sorted(
        file
        for source in sources
        for file in ([source] if source.is_file() else source.rglob("*.kt"))
    )
    signatures = sorted(file for folder in against for file in folder.rglob("*.java"))
    digest = hashlib.sha256(repr((compiler.name, _TARGET, [a.name for a in against])).encode())
    for file in [*files, *signatures]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    java = [str(file) for file in against if file.is_dir() and any(file.rglob("*.java"))]
    path = [str(file) for file in against if str(file) not in java]

    def make(folder: Path, work: Path) -> None:
        if shutil.which("java") is None:
            raise RehearsalError(_NO_JAVA)
        command = [
            "java", "-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
            ":".join(map(str, compiler.glob("*.jar"))),
            "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
            "-no-stdlib", "-no-reflect", "-jvm-target", _TARGET, "-Werror", "-d", str(folder),
            "-cp", ":".join([str(compiler / "kotlin-stdlib.jar"), *path]), *map(str, files), *java,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [
                each for each in done.stderr.splitlines() if "error:" in each or "warning:" in each
            ]
            raise RehearsalError(
                "\n".join(lines[:20]) or done.stderr[:500] or "the compiler failed"
            )

    return kept(f"classes-{digest.hexdigest()[:16]}", make)
