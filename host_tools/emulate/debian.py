"""Debian's arm64 packages through a private apt configuration.

Nothing is installed on the host. The packages are checked against the host's own sources and keys.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from .host import run_command


def download_debs(names: Sequence[str], folder: Path) -> list[Path]:
    """The arm64 packages ``names`` and all that they need, as files in ``folder`` (absolute).

    Raises:
        EmulatorError: the host is not Debian, or a download fails.
    """
    archives = folder / "cache" / "archives"
    for each in (archives / "partial", folder / "lists" / "partial", folder / "state"):
        each.mkdir(parents=True)
    (folder / "status").touch()  # nothing is installed, so everything is downloaded
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::State "{folder}/state";\n'
        f'Dir::State::lists "{folder}/lists";\n'
        f'Dir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
        'APT::Architecture "arm64";\n'
        'APT::Architectures { "arm64"; };\n'
        'APT::Install-Recommends "false";\n'
        'APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
    failed = "Debian's arm64 packages cannot be downloaded (needs Debian 13)"
    run_command(["apt-get", "update"], failed, environment)
    run_command(["apt-get", "install", "--yes", "--download-only", *names], failed, environment)
    return sorted(archives.glob("*.deb"))
