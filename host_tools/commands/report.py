"""``seedtune report``: a run for people, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, RunPath
from .output import Output


def report(
    run: RunPath,
    page: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file. Default: RUN/report.html.")
    ] = None,
    json: Json = False,
) -> None:
    """Write one HTML page of a run: curves, answers before and after, settings, hashes, memory.

    It is readable without a network, and needs nothing beside it. It shows rows of your data.
    """
    from seedtune.runtime.journal.run_folder import REPORT_FILE, check_output_of

    from ..reports.curves import run_curves
    from ..reports.page import write_page
    from .journal import that_matter

    file = page or run / REPORT_FILE
    check_output_of(run, file, own=REPORT_FILE)
    found = run_curves(run)
    write_page(found, run, file, that_matter(found.history))
    Output(json).result({"page": str(file), "bytes": file.stat().st_size})
