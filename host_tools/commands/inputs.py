"""From options to what the runtime takes: models, tasks, examples, values."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seedtune.runtime.errors import DataError, JournalError, SeedtuneError, TuningError

if TYPE_CHECKING:
    from seedtune.runtime.bundle import Bundle
    from seedtune.runtime.model import Model
    from seedtune.runtime.tasks.rows import Row

    from ..data.named_tasks import TaskData
    from .output import Output


def checked_bundle(path: Path, output: Output) -> Bundle:
    """A bundle, opened while whoever waits sees how far its check is."""
    from seedtune.runtime.bundle import open_bundle
    from seedtune.runtime.bundle.archive import local_bundle

    local = local_bundle(path)  # of one on the hub its client shows how far the download is
    with output.checking() as progress:
        return open_bundle(local, progress=progress)


def checked_model(
    bundle: Path,
    output: Output,
    *,
    threads: int | None = None,
    memory_limit: str | None = None,
    **asked: Any,
) -> Model:
    """The same for a model.

    Args:
        threads, memory_limit: as the options give them.
        asked: as of ``open_model``, which checks it.
    """
    from seedtune.runtime.bundle.archive import local_bundle
    from seedtune.runtime.model import open_model

    limit = memory_bytes(memory_limit)
    local = local_bundle(bundle, asked.get("sha256"))  # before a bar of ours: its client shows one
    with output.checking() as progress:
        return open_model(
            local, progress=progress, threads=threads or "auto", memory_limit=limit, **asked
        )


@contextlib.contextmanager
def tuned_model(
    bundle: Path, output: Output, run: Path | None, values: Path | None, **asked: Any
) -> Iterator[tuple[Model, str]]:
    """``checked_model`` with what ``--run`` or ``--values`` ask for; and where that is from."""
    with checked_model(bundle, output, **asked) as model:
        yield model, load_chosen(model, run, values)


def model_source(name: str, output: Output) -> str:
    """A model's folder, hub id or file; names that ``fetch`` knows are fetched."""
    from ..data.fetch import RESOURCES, fetch

    if name not in RESOURCES or Path(name).exists():
        return name
    with output.counting(f"fetching {name}", size=True) as progress:
        return str(fetch(name, progress))


@dataclass(frozen=True)
class ChosenTask:
    """A task specification, and its data if it is a named one."""

    spec: dict[str, Any] | None
    data: TaskData | None

    @classmethod
    def of(cls, name: str | None, bundled: dict[str, Any] | None = None) -> ChosenTask:
        """The task that ``--task`` names, else the bundle's; no specification without either.

        Raises:
            DataError: neither, no such name, or the file holds no specification (see
                ``check_spec``).
        """
        from seedtune.runtime.tasks import read_spec

        from ..data.named_tasks import TASKS, load_task

        if name is None:
            return cls(bundled, None)
        if name in TASKS:
            data = load_task(name)
            return cls(data.spec, data)
        if Path(name).suffix != ".json":
            raise DataError(
                f"unknown task {name!r}; known: {', '.join(TASKS)}, or a .json file with a task "
                "specification"
            )
        return cls(read_spec(name), None)

    @classmethod
    def of_words(cls, template: str, labels: str) -> ChosenTask:
        """The classification task that ``--template`` and ``--labels`` describe.

        Raises:
            DataError: they describe none.
        """
        from seedtune.runtime.tasks import check_spec

        template = template.replace("\\n", "\n")
        pairs = [each.partition("=") for each in labels.split(",")]
        if not all(label.strip() and (word.strip() or not equals) for label, equals, word in pairs):
            raise DataError(
                f"--labels {labels!r} must be words such as 'good,bad', or labels with the words "
                "that continue the prompt, such as '1=great,0=terrible'"
            )
        space = "" if template[-1:].isspace() or not template else " "
        words = {
            label.strip(): space + (word if equals else label).strip()
            for label, equals, word in pairs
        }
        if len(words) < len(pairs):
            raise DataError(f"--labels {labels!r} names a label twice")
        spec = {
            "kind": "classification",
            "template": template,
            "label_field": "label",
            "verbalisers": words,
        }
        check_spec(spec)
        return cls(spec, None)

    def rows(self, part: Literal["train", "test"], file: Path | None) -> list[Row]:
        """Rows of ``file``, or of the named task's own ``part``.

        Raises:
            DataError: no file given and the task brings no data, or no rows can be read.
        """
        from seedtune.runtime.tasks import read_rows

        if file is not None:
            return read_rows(file)
        if self.data is not None:
            own = self.data.train if part == "train" else self.data.test
            return read_rows(own, f"{self.data.name} {part} row")
        option = "--train" if part == "train" else "--data"
        raise DataError(f"no examples; give a file of rows with {option}")


def load_chosen(model: Model, run: Path | None, file: Path | None) -> str:
    """Load the values that ``--run`` or ``--values`` ask for; returns where they are from."""
    from seedtune.runtime.hub import place_of

    if run is not None and file is not None:
        raise SeedtuneError("give --run or --values, not both")
    if run is not None and not run.is_dir():
        raise JournalError(f"{run}: no such run folder")
    source = run or file
    if source is None:
        return "the bundle, untuned"
    model.load(source)
    return f"{run}, step {model.step}" if run is not None else str(place_of(source) or source)


def memory_bytes(text: str | None) -> int | None:
    """What ``--memory-limit`` says, in bytes.

    Raises:
        TuningError: it is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?) ?([KMG]?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise TuningError(f"memory limit {text!r} must be a size such as 300MB or 1.5GB")
    return int(float(found[1]) * 1000 ** " KMG".index(found[2].upper() or " "))


def task_of_run(run: Path) -> dict[str, Any] | None:
    """The task specification of the run in a folder; None if there is no run, or it names none."""
    from seedtune.runtime.journal.file import read_journal
    from seedtune.runtime.journal.run_folder import JOURNAL_FILE

    if not (run / JOURNAL_FILE).exists():
        return None
    task = read_journal(run, until=0).header.task
    return None if task is None else dict(task["spec"])


def task_to_show(run: Path, spec: dict[str, Any] | None) -> dict[str, Any] | None:
    """The task to put demonstrations in front of: the run's, if it is the same otherwise."""
    from seedtune.runtime.tasks.demonstrations import FIELD

    known = task_of_run(run)
    if known is None or spec is None or {**known, FIELD: 0} == {**spec, FIELD: 0}:
        return known or spec
    return spec


def spaced(items: Sequence[Any], limit: int) -> list[Any]:
    """At most ``limit`` items at even distances: a file sorted by label keeps all its labels."""
    if limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]
