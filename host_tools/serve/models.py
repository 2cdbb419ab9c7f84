"""The bundle as exported and each of its runs, a model of its own under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seedtune.runtime.errors import JournalError, SeedtuneError

from .refusal import Refusal

if TYPE_CHECKING:
    from seedtune.runtime.model import Model
    from seedtune.runtime.writing import Writer


class Models:
    """All over one open program. The thread that answers alone uses them."""

    def __init__(self, model: Model, runs: Sequence[Path]) -> None:
        """
        Args:
            model: as exported.
            runs: folders, whose best values are loaded, and their task.

        Raises:
            SeedtuneError: two runs have one name, or one cannot be loaded.
        """
        name = str(model.bundle.manifest["model"]["name"])
        self._models = {name: model}
        self._latest: tuple[str, Writer] | None = None
        for run in runs:
            if not run.is_dir():
                raise JournalError(f"{run}: no such run folder")
            own = f"{name}:{run.resolve().name}"
            if own in self._models:
                raise SeedtuneError(f"{run}: another run is called {own}, too; rename the folder")
            self._models[own] = model.twin()
            self._models[own].load(run)

    @property
    def names(self) -> list[str]:
        """What can be asked for, the exported model first."""
        return list(self._models)

    def __getitem__(self, name: str) -> Model:
        """
        Raises:
            Refusal: no such model.
        """
        if name not in self._models:
            raise Refusal(
                404,
                f"there is no model {name[:60]!r}; there are: {', '.join(self._models)}",
                param="model",
                code="model_not_found",
            )
        return self._models[name]

    def writer(self, name: str, fresh: bool) -> Writer:
        """Writes with a model's values.

        What a prompt has in common with the text before it is not read again, so a conversation
        costs its new messages. There is one text for all models: its memory is the largest.

        Args:
            fresh: begin an empty text: the same prompt then gives the same answer, to the bit.
        """
        if fresh or self._latest is None or self._latest[0] != name:
            self._latest = None  # before the next one: two would take twice the memory
            self._latest = name, self[name].writer()
        return self._latest[1]

    def forget_text(self) -> None:
        """Begin an empty text next time, as after an error in the middle of one."""
        self._latest = None
