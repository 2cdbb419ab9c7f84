"""``seedtune push``."""

from __future__ import annotations

import contextlib
import json as json_format
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from seedtune.runtime.errors import DownloadError, JournalError, SeedtuneError

from .inputs import checked_model
from .options import Json
from .output import Output

if TYPE_CHECKING:
    from seedtune.runtime.hub import Place
    from seedtune.runtime.model import Model

    from ..reports.card import PushedRun

_VALUES, _TASK, _JOURNAL = "tuned.safetensors", "task.json", "journal.bin"


def push(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|BUNDLE", help="Run folder, bundle folder or .seedtune file."),
    ],
    place: Annotated[
        str, typer.Argument(metavar="hf://OWNER/NAME", help="Repository; made if it is not there.")
    ],
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Of a run: the bundle that it tuned, here or on the hub."),
    ] = None,
    with_words: Annotated[
        bool, typer.Option("--with-words", help="Of a run: also words of the texts that it keeps.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone read a new repository.")
    ] = False,
    json: Json = False,
) -> None:
    """Upload a run or a bundle to the Hugging Face hub, with a model card.

    Of a run its tuned values go up, its task if the bundle has another, and its journal if 'journal
    share' would write it. Rows, single rows' numbers and, unless asked for, words of the texts stay
    here; demonstrations of a task are a part of it.
    """
    from seedtune.runtime.journal.run_folder import JOURNAL_FILE

    output = Output(json)
    target = _target(place)
    of_run = (source / JOURNAL_FILE).exists()
    if of_run and bundle is None:
        raise SeedtuneError(f"{source}: is a run; say with --bundle which bundle it tuned")
    given = [name for name, value in (("--bundle", bundle), ("--with-words", with_words)) if value]
    if given and not of_run:
        raise SeedtuneError(f"{source}: is no run; leave out {' and '.join(given)}")
    with TemporaryDirectory() as work, checked_model(bundle or source, output) as model:
        from ..reports.card import card_of

        files: Mapping[str, Path] = {}
        run = None
        if bundle is None:
            from seedtune.runtime.bundle.manifest import MANIFEST

            names = (MANIFEST, *model.bundle.manifest["parts"])
            files = {name: model.bundle.path / name for name in names}
        else:
            files, run = _of_run(source, model, str(bundle), Path(work), with_words, output)
        if "demonstrations" in (model.task_spec or {}):
            output.note("the task's demonstrations, which are rows, go with it")
        card = Path(work) / "README.md"
        text = card_of(model, str(target), _licence(model.bundle.manifest["model"]), run)
        card.write_text(text, encoding="utf-8")
        found = _upload(target, {**files, card.name: card}, public, output)
    output.result(found)


def _target(text: str) -> Place:
    from seedtune.runtime.hub import place_of

    place = place_of(text)
    if place is None or place.kind != "model" or place.path:
        raise DownloadError(f"{text}: must be a repository to push to, such as hf://owner/name")
    return place


def _of_run(
    folder: Path, model: Model, bundle: str, work: Path, with_words: bool, output: Output
) -> tuple[Mapping[str, Path], PushedRun]:
    """Files in ``work`` that are of a run, by name, and what its card says; loads it into
    ``model``."""
    from seedtune.runtime.hub import place_of
    from seedtune.runtime.journal.file import read_journal
    from seedtune.runtime.journal.operations import share
    from seedtune.runtime.journal.start import Start
    from seedtune.runtime.journal.state import history_of

    from ..reports.card import PushedRun
    from ..reports.outcome_file import read_outcome

    journal = read_journal(folder)
    history = history_of(journal)
    model.load(folder)
    outcome = read_outcome(folder, journal, history)
    if outcome.get("values_sha256") != model.values.sha256:
        outcome = {}
    left_out = bool(model.values.words.any()) and not with_words
    if left_out:
        model.values = model.values.without_words()
        output.note("words of the texts stay here (--with-words uploads them, too)")
    digest = model.save(work / _VALUES)
    files = {_VALUES: work / _VALUES}
    if model.task_spec is not None and dict(model.task_spec) != model.bundle.task:
        files[_TASK] = work / _TASK
        files[_TASK].write_text(json_format.dumps(model.task_spec, indent=1), encoding="utf-8")
    try:
        share(folder, work / _JOURNAL, Start.of(model.bundle))
        files[_JOURNAL] = work / _JOURNAL
        output.note("the journal goes with it, as 'journal share' writes it (see docs/runs.md)")
    except JournalError as error:  # of a run that was loaded: it may not be shared
        output.note(f"the journal stays here: {str(error).partition(';')[0]}")
    where = place_of(bundle)
    return files, PushedRun(
        estimator=history.settings.estimator,
        step=model.step,
        sha256=digest,
        bundle=Path(bundle).name if where is None else str(where),
        outcome=outcome,
        files=tuple(files),
        words_left_out=left_out,
    )


def _licence(about: Mapping[str, Any]) -> str | None:
    """The base model's licence, if it is one that the hub or ``fetch`` knows."""
    from seedtune.runtime.hub import asking, place_of

    from ..data.fetch import RESOURCES

    origin = None if about.get("origin") is None else place_of(about["origin"])
    if origin is None:
        return RESOURCES[about["name"]].licence if about["name"] in RESOURCES else None
    with contextlib.suppress(DownloadError), asking(origin):
        from huggingface_hub import HfApi

        card = HfApi().model_info(origin.repository, revision=origin.revision).card_data
        return None if card is None or not card.license else str(card.license)
    return None


def _upload(
    place: Place, files: Mapping[str, Path], public: bool, output: Output
) -> dict[str, Any]:
    """One commit with ``files``, and without those that an earlier run left there."""
    from seedtune.runtime.hub import asking

    with asking(place):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        hub = HfApi()
        with contextlib.nullcontext() if output.live else disable_progress_bars():
            hub.create_repo(place.repository, private=not public, exist_ok=True)
            there = hub.list_repo_files(place.repository, revision=place.revision)
            gone = {_VALUES, _TASK, _JOURNAL} & set(there) - set(files)
            done = hub.create_commit(
                place.repository,
                [
                    *(CommitOperationAdd(name, file) for name, file in files.items()),
                    *(CommitOperationDelete(name) for name in sorted(gone)),
                ],
                commit_message="seedtune push",
                revision=place.revision,
            )
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return {
        "place": str(place),
        "commit": done.oid,
        "files": list(sizes),
        "bytes": sum(sizes.values()),
    }
