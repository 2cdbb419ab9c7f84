"""The model card of what is pushed to the hub: a README.md with the hub's own metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seedtune.runtime.errors import one_line

if TYPE_CHECKING:
    from seedtune.runtime.model import Model

_TITLE = "# {name}\n\n{what} seedtune, which fine-tunes a language model on the device that runs "
_TITLE += "it, with forward passes only."


@dataclass(frozen=True)
class PushedRun:
    """What a card says of a run, its values apart."""

    estimator: str
    step: int
    sha256: str
    """Of the float16 values."""
    bundle: str
    """Where the bundle is, as ``open_model`` takes it."""
    outcome: Mapping[str, Any]
    """What ``read_outcome`` gives, or nothing if that is of other values."""
    files: tuple[str, ...]
    words_left_out: bool


def card_of(model: Model, place: str, licence: str | None, run: PushedRun | None = None) -> str:
    """The text of the card.

    Args:
        model: the bundle with, of a run, its task.
        place: where it will be.
        licence: of the base model, if it is known.
    """
    from huggingface_hub import ModelCardData
    from seedtune.runtime.hub import place_of

    about = model.bundle.manifest["model"]
    origin = None if about.get("origin") is None else place_of(about["origin"])
    spec = model.task_spec
    chooses = spec is not None and bool(model.task.labels)
    writes = model.bundle.generation is not None
    kind = "text-classification" if chooses else "text-generation" if writes or spec else None
    metadata = ModelCardData(
        library_name="seedtune",
        pipeline_tag=kind,
        base_model=None if origin is None else origin.repository,
        license=_identifier(licence),
        tags=["seedtune", "int4", "on-device"],
    )
    facts = {
        "base model": about["name"] if origin is None else str(origin),
        "licence of the base model": licence or "not known here",
        "bundle (SHA-256)": model.bundle.sha256,
    }
    what = "A bundle for"
    if run is not None:
        what = "What a run learned with"
        facts["bundle"] = run.bundle
        facts["learned by"] = f"`{run.estimator}`, step {run.step}"
        facts["values (SHA-256 of float16)"] = run.sha256
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        _TITLE.format(name=place.rpartition("/")[2].partition("@")[0], what=what),
        _table(("", ""), facts.items()),
        *(["## Figures", *_figures(run)] if run is not None else []),
        *(["## Task", *_task(spec)] if spec is not None else []),
        "## Use",
        *_use(model, place, run, chooses),
    ]
    return "\n\n".join(parts) + "\n"


def _figures(run: PushedRun) -> Iterator[str]:
    """Before and after, and of which rows; never of a single one."""
    outcome = run.outcome
    before, after = (dict(outcome.get(when) or {}) for when in ("before", "after"))
    judged = outcome.get("judged_rows") or 0
    rows = judged or outcome.get("choosing_rows") or 0
    if rows < 2 or not after:
        yield "None: the run was judged on no rows, or on one, whose numbers stay with its owner."
        return
    after.pop("step", None)
    flatters = "which chose the step that ships, and flatter it"
    which = "which decided nothing" if judged else flatters
    yield f"As the run reported them, on {rows} held-out rows, {which}."
    yield _table(
        ("", "before", "after"),
        ((name, _shown(before.get(name)), _shown(after[name])) for name in after),
    )
    if run.words_left_out:
        yield (
            "*After* was measured with a memory of the owner's words, which is not here: these "
            "values do less."
        )


def _task(spec: Mapping[str, Any]) -> Iterator[str]:
    shown = {name: value for name, value in spec.items() if name != "demonstrations"}
    yield f"```json\n{json.dumps(shown, ensure_ascii=False, indent=1)}\n```"
    if len(shown) < len(spec):
        yield f"With {len(spec['demonstrations'])} demonstrations in front of each prompt."


def _use(model: Model, place: str, run: PushedRun | None, chooses: bool) -> Iterator[str]:
    bundle = place if run is None else run.bundle
    asked = f'"{bundle}", sha256="{model.bundle.sha256}"'
    if run is not None and "task.json" in run.files:
        asked += f', task="{place}/task.json"'
    lines = ["from seedtune.runtime import open_model", "", f"model = open_model({asked})"]
    if run is not None:
        lines.append(f'model.load("{place}/tuned.safetensors")')
    if chooses:
        label = (model.task_spec or {}).get("label_field")
        row = ", ".join(f'"{name}": "..."' for name in model.task.shortest_row() if name != label)
        lines.append(f"print(model.predict({{{row}}}).answer)")
    elif model.bundle.generation is not None:
        lines.append('print("".join(model.generate("...")))')
    yield "```sh\npip install 'seedtune[hub]'\n```"
    yield "```python\n" + "\n".join(lines) + "\n```"
    if run is None:
        yield f"Tune it: `seedtune tune {place} run --train rows.jsonl`."
    elif "journal.bin" in run.files:
        yield f"Go on with the run: `seedtune journal receive {place}/journal.bin {bundle} run`."
    yield "A bundle is code: open those of people whom you trust, by their hash."


def _identifier(licence: str | None) -> str | None:
    """A licence as the hub's metadata name it; None of one that only a text names."""
    found = (licence or "").lower()
    return found if found and all(mark.isalnum() or mark in "-." for mark in found) else None


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}"


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    cells = ([one_line(str(cell)).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
