"""``seedtune push-android``: a bundle to a phone on a cable, where the app takes it in."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from seedtune.runtime.errors import SeedtuneError

from .inputs import checked_bundle
from .options import BundlePath, Json
from .output import Output, printable

PACKAGE = "org.seedtune.demo"
_ON_PHONE = "/data/local/tmp/model.seedtune"
_INCOMING = "files/incoming"


def push_android(
    bundle: BundlePath,
    run: Annotated[
        bool, typer.Option("--run", help="Run the commands, not only show them.")
    ] = False,
    serial: Annotated[
        str | None, typer.Option("--serial", help="Which phone, as 'adb devices' names it.")
    ] = None,
    json: Json = False,
) -> None:
    """Show, or run, what copies a bundle into the Android app, by adb; open the app afterwards."""
    from seedtune.runtime.bundle import pack_bundle

    output = Output(json)
    opened = checked_bundle(bundle, output)
    archive = bundle if bundle.is_file() else Path("model.seedtune")
    if not run:
        lines = [shlex.join(command) for command in adb_commands(archive, serial)]
        if archive != bundle:
            lines.insert(0, shlex.join(["seedtune", "pack", str(bundle), str(archive)]))
        if json:
            output.result({"commands": lines, "sha256": opened.sha256})
        else:  # to be copied, so never broken
            print("\n".join(map(printable, lines)))
        return
    if shutil.which("adb") is None:
        raise SeedtuneError("adb is not installed; apt-get install adb, or run without --run")
    with tempfile.TemporaryDirectory() as scratch:
        if archive != bundle:
            archive = pack_bundle(opened.path, Path(scratch) / "model.seedtune")
        for command in adb_commands(archive, serial):
            output.note(shlex.join(command))
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
                raise SeedtuneError(
                    f"{shlex.join(command[:4])} failed: {said[-1][:300]}; is the app installed "
                    "(a debug build) and the phone unlocked?"
                )
    output.result({"pushed": opened.sha256}, f"open the app: it checks {opened.sha256[:16]}")


def adb_commands(archive: Path, serial: str | None = None) -> list[list[str]]:
    """Copy to where adb may write, then as the app into its own folder; whole or not at all."""
    adb = ["adb", *(["-s", serial] if serial else [])]
    take = (
        f"mkdir -p {_INCOMING} && cat > {_INCOMING}/pushed.part && "
        f"mv {_INCOMING}/pushed.part {_INCOMING}/pushed.seedtune"
    )
    inside = f"run-as {PACKAGE} sh -c {shlex.quote(take)} < {_ON_PHONE}"
    return [
        [*adb, "push", str(archive), _ON_PHONE],
        [*adb, "shell", inside],
        [*adb, "shell", f"rm {_ON_PHONE}"],
    ]
