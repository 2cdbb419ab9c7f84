"""Commands that look at bundles and change their form: inspect, pack."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import checked_bundle
from .options import BundlePath, Json
from .output import Output, fields_table

if TYPE_CHECKING:
    from seedtune.runtime.bundle import Bundle


def inspect(bundle: BundlePath, json: Json = False) -> None:
    """Check a bundle and show what it holds."""
    output = Output(json)
    opened = checked_bundle(bundle, output)
    output.result(_described(opened), None if json else _shown(opened))


def pack(
    bundle: BundlePath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Archive, *.seedtune.")],
    json: Json = False,
) -> None:
    """Write a bundle folder as one file."""
    from seedtune.runtime.bundle import pack_bundle

    pack_bundle(bundle, file)
    Output(json).result({"file": str(file), "bytes": file.stat().st_size})


def _described(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        **{name: manifest[name] for name in ("version", "model", "mask", "quantisation")},
        "programs": [dataclasses.asdict(program) for program in bundle.programs],
        "engines": _engines(bundle),
        "bounds": dataclasses.asdict(bundle.bounds),
        "hidden_width": bundle.hidden_width,
        "adapter": bundle.adapter_shape,
        "text_head": None if bundle.text_head is None else bundle.text_head.entries,
        "terms": sum(out * rank for out, rank in bundle.terms_shapes) or None,
        "tokenizer": manifest["tokenizer"],
        "task": bundle.task,
        "parts": manifest["parts"],
        "bytes": sum(part["bytes"] for part in manifest["parts"].values()),
        "layers": manifest["layers"],
    }


def _engines(bundle: Bundle) -> dict[str, str]:
    """What each engine for the bundle's programs does or lacks here, best first."""
    from seedtune.runtime.engines import engines_of

    found: dict[str, str] = {}
    for name, module, program in engines_of(bundle):
        reason = module.unavailable()
        chosen = not any(told.startswith("runs") for told in found.values())
        works = f"{'runs' if chosen else 'could run'} the {program.format} program"
        found[name] = f"not here: {reason}" if reason else works
    return found


def _shown(bundle: Bundle) -> Any:
    described = _described(bundle)
    layers = described.pop("layers")
    filled = [layer for layer in layers if layer["count"]]
    writing = bundle.generation
    described["writes"] = (
        f"texts of up to {writing.context} tokens" + ("" if bundle.chat is None else ", and chats")
        if writing is not None
        else "nothing: it only scores; export again to change that"
    )
    described["matrices"] = f"{len(layers)}, {len(filled)} of them with sensitive values"
    return fields_table(described)
