"""``seedtune fetch``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from seedtune.runtime.errors import DownloadError

from .options import Json
from .output import Output

QUICKSTART_RESOURCES = (
    "smollm2-135m",
    "wikipedia-passages",
    "movie-reviews",
    "sst2",
    "sms-spam",
)


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Default: what the quickstart needs."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Fetch all that is known.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Only list what is known.")] = False,
    json: Json = False,
) -> None:
    """Download models and data sets once; everything else then runs offline."""
    from ..data.fetch import RESOURCES
    from ..data.fetch import fetch as fetch_one

    output = Output(json)
    if listing:
        table = Table("name", "what", "licence", box=None)
        for resource in RESOURCES.values():
            table.add_row(resource.name, resource.about, resource.licence)
        output.result({name: item.about for name, item in RESOURCES.items()}, table)
        return
    wanted = list(RESOURCES) if everything else names or list(QUICKSTART_RESOURCES)
    for name in wanted:
        if name not in RESOURCES:  # before anything is downloaded
            raise DownloadError(f"unknown resource {name!r}; known: {', '.join(RESOURCES)}")
    found = {}
    for name in wanted:
        with output.counting(f"fetching {name}", size=True) as progress:
            found[name] = str(fetch_one(name, progress))
        output.note(f"{name}: {RESOURCES[name].about}; licence: {RESOURCES[name].licence}")
    output.result(found)
