"""``seedtune merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from seedtune.runtime.errors import SeedtuneError

from .inputs import ChosenTask, checked_model, load_chosen, model_source
from .options import BundleHash, BundlePath, FromRun, FromValues, Json, Source, TaskName
from .output import Output

if TYPE_CHECKING:
    from seedtune.runtime.model import Model


def merge(
    bundle: BundlePath,
    model: Source,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write; with --to gguf a file.")
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="hf|peft|gguf",
            help="A checkpoint of transformers, an adapter of peft, or a GGUF file for llama.cpp.",
        ),
    ] = "hf",
    run: FromRun = None,
    values: FromValues = None,
    task: TaskName = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Write tuned values into a checkpoint of BUNDLE's model, a GGUF file, or an adapter for it.

    What a run learned beside them (a readout, a text head) has no place in either: it goes beside
    a checkpoint, with a loader.
    """
    from seedtune.export.load_merged import MODEL
    from seedtune.export.merge import merge_values

    output = Output(json)
    if run is None and values is None:
        raise SeedtuneError("give what to merge: --run RUN or --values FILE")
    spec = ChosenTask.of(task).spec
    with checked_model(bundle, output, task=spec, sha256=sha256) as opened:
        origin = load_chosen(opened, run, values)
        own, head = opened.values.sensitive, _head_of(opened)
        source = model_source(model, output)
        with output.waiting("loading the model and writing it"):
            written = merge_values(opened.bundle, own, source, out, to=to, head=head)
        if head is not None:
            output.note(
                f"{out}/load_merged.py loads the model with what was learned beside it; "
                f"{out / MODEL} alone answers without it"
            )
        if opened.values.keeps_words:
            output.note("the memory of words has no part in it, and works with the bundle alone")
    output.result({"written": str(out), "values": origin, **written})


def _head_of(model: Model) -> Any:
    """What the values in use hold beside the sensitive ones, as ``merge_values`` takes it.

    Raises:
        TuningError: it is for another task than the model's.
    """
    from seedtune.export.merge import AnswerHead as MergedHead
    from seedtune.export.merge import TextHead
    from seedtune.runtime.scoring.answer_head import AnswerHead
    from seedtune.runtime.scoring.text_part import TextPart

    part = model.values.part
    if isinstance(part, TextPart):
        return TextHead(part.inputs["adapter"], list(part.changes()))
    if not isinstance(part, AnswerHead):
        return None
    head = part.for_task(model.task, model.engine)
    spec, task = dict(model.task_spec or {}), model.task
    return MergedHead(head.weights, head.share, spec, task.labels, len(task.prefix))
