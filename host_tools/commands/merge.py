"""``seedtune merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from seedtune.runtime.errors import SeedtuneError

from .inputs import checked_model, load_chosen, model_source
from .options import BundleHash, BundlePath, FromRun, FromValues, Json, Source
from .output import Output


def merge(
    bundle: BundlePath,
    model: Source,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    run: FromRun = None,
    values: FromValues = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Write tuned values into a Hugging Face checkpoint of the model that BUNDLE was made from."""
    from seedtune.export.merge import merge_values

    output = Output(json)
    if run is None and values is None:
        raise SeedtuneError("give what to merge: --run RUN or --values FILE")
    with checked_model(bundle, output, sha256=sha256) as opened:
        origin = load_chosen(opened, run, values)
        own, adapter = opened.values.sensitive, opened.values.inputs.get("adapter")
        source = model_source(model, output)
        written = merge_values(opened.bundle, own, source, folder, adapter=adapter)
        if adapter is not None:
            output.note(
                f"{folder}/load_merged.py loads the checkpoint with the text head, which lies "
                "beside it; other loaders go without the head"
            )
            if opened.values.keeps_words:
                output.note(
                    "the memory of words has no part in it, and works with the bundle alone"
                )
        elif opened.values.part is not None:
            output.note(
                "only the sensitive values are merged: what else the run learned has no place in a "
                "checkpoint, and works with the bundle alone"
            )
    output.result({"folder": str(folder), "values": origin, **written})
