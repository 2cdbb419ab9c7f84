"""The bundle's manifest: its fields, its version and what they must satisfy among themselves."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BundleError
from ..schema import SHA256, ListOf, MapOf, Maybe, Real, Text, Whole, check, parse_json
from .program import BEHIND, COLUMNS, GENERATE, LARGEST, METHOD, Adapter, Bounds, Program
from .terms import MatrixPlace, TermsInfo, check_terms
from .text_head import MOST_MOVED, WORDS_GROUP, TextHeadInfo, WordsPlace

FORMAT = "seedtune-bundle"
VERSION = 8
"""The one that is written and read."""
MANIFEST = "manifest.json"
VALUES = "values.safetensors"
TOKENIZER = "tokenizer.json"
CHAT = "chat.json"
"""May be missing: the model's chat template (see ``parts``)."""
TEXT = "text.safetensors"
"""May be missing: what a head for text is learned in (see ``text_head``)."""
TERMS = "terms.safetensors"
"""May be missing: what terms of the upper blocks are learned in (see ``terms``)."""

_SIZE = Whole(1, LARGEST)
_TAKEN = "|".join(map(re.escape, (MANIFEST, VALUES, TOKENIZER, CHAT, TEXT, TERMS)))
_PROGRAM_FILE = Text(
    rf"(?!({_TAKEN})$)[a-z][a-z0-9_-]{{0,63}}\.(pte|onnx|safetensors|json)", "a plain file name"
)
"""In one case, since a file system may know no other."""
_CACHE = ListOf(ListOf(_SIZE))
_GENERATION = {
    "chunk": _SIZE,
    "context": Whole(2, LARGEST),
    "cache": _CACHE,
    "columns": _SIZE,
}
_PROGRAM = {
    "format": Text(),
    "files": ListOf(_PROGRAM_FILE),
    "methods": {
        METHOD: dict,
        GENERATE: Maybe(_GENERATION),
        COLUMNS: Maybe(dict),
        BEHIND: Maybe({"cache": _CACHE}),
    },
    "activations": Text(),
}
_TEXT_HEAD = {
    "outputs": Whole(1, 2**16),
    "inputs": Whole(1, 2**16),
    "words": {"file": Text(), "codes": Whole(), "scales": Whole()},
    "softcap": Maybe(Real(1e-6, 1e6)),
}
_TERMS = {
    "first": Whole(0, LARGEST),
    "blocks": _SIZE,
    "rank": Whole(1, 2**10),
    "inner": _SIZE,
    "eps": Real(0, 1),
    "norms": Whole(1, 2),
    "activation": Text(),
    "file": Text(),
    "matrices": ListOf(
        {each.name: str if each.type is str else Whole() for each in fields(MatrixPlace)}
    ),
}
# See ``schema``. A field that is not listed is allowed, and ignored.
_SCHEMA: dict[str, Any] = {
    "model": {
        "name": Text(),
        "origin": Maybe(Text()),
        "architecture": Text(),
        "sha256": str,
        "vocab_size": _SIZE,
        "hidden_size": _SIZE,
        "layers": Whole(0, LARGEST),
    },
    "mask": {
        "method": Text(),
        "fraction": Real(),
        "entries": int,
        "profile_sha256": (str, type(None)),
    },
    "quantisation": {},
    "programs": ListOf(_PROGRAM),
    "bounds": {field.name: int for field in fields(Bounds)},
    "hidden_blocks": ListOf(int),
    "mean_blocks": ListOf(int),
    "adapter": Maybe({"width": _SIZE, "blocks": ListOf(_SIZE)}),
    "text_head": Maybe(_TEXT_HEAD),
    "terms": Maybe(_TERMS),
    "layers": ListOf({"name": Text(), "shape": ListOf(_SIZE), "offset": Whole(), "count": Whole()}),
    "tokenizer": {"sha256": str, "pad_id": int, "end_ids": ListOf(int), "vocab_size": int},
    "task": (dict, type(None)),
    "parts": MapOf({"sha256": SHA256, "bytes": Whole()}),
    "sha256": str,
}


@dataclass(frozen=True)
class Layer:
    """One weight matrix and its share ``[offset, offset + count)`` of the sensitive values."""

    name: str
    shape: tuple[int, int]
    """``(out, in)``."""
    offset: int
    count: int


@dataclass(frozen=True)
class Part:
    """Size and SHA-256 (hex) of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A manifest that is consistent in itself; the parts are still to be checked against it."""

    manifest: Mapping[str, Any]
    """As it stands; what programs are scored by has fields here."""
    sha256: str
    """Hash of the canonical manifest, so of every part: the bundle's identity."""
    programs: tuple[Program, ...]
    bounds: Bounds
    """Bounds of every program."""
    hidden_blocks: tuple[int, ...]
    """Decoder blocks below each hidden state that programs return; none if they return none."""
    mean_blocks: tuple[int, ...]
    """The same of those that are means over the row so far, which come last."""
    adapter: Adapter | None
    """What programs take to move what the head reads; None if they take nothing."""
    text_head: TextHeadInfo | None
    """What a text head is learned from; None if the bundle has nothing for it."""
    terms: TermsInfo | None
    """The low-rank terms that programs take; None if they take none."""
    layers: tuple[Layer, ...]
    parts: Mapping[str, Part]

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts.values())


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the manifest's canonical JSON without its own ``sha256`` field."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(data: bytes, folder: Path) -> Manifest:
    """Parse and check ``manifest.json``; ``folder`` only names the culprit in errors.

    Raises:
        BundleError: not JSON, another format or version, altered, or fields that are missing, of
            the wrong type, or contradict each other.
    """
    file = folder / MANIFEST
    try:
        content = parse_json(data)
    except ValueError as error:
        raise BundleError(f"{file}: truncated or altered: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{file}: not a seedtune bundle (format must be {FORMAT!r})")
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        raise BundleError(
            f"{file}: is of bundle version {version!r:.40}, this seedtune reads {VERSION}; export "
            "the model again, or take the seedtune that wrote the bundle"
        )
    try:
        check(content, _SCHEMA)
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from None
    digest = manifest_digest(content)
    if content["sha256"] != digest:
        raise BundleError(f"{file}: altered (its SHA-256 differs); copy the bundle again")
    try:
        return _check_meaning(content, digest)
    except BundleError as error:
        raise BundleError(f"{file}: {error}") from None


def check_identity(found: str, sha256: str | None, path: Path) -> None:
    """Refuse a bundle with the hash ``found`` unless ``sha256`` (64 hexadecimal digits) is that;
    None takes any.

    Raises:
        BundleError: another bundle, or no SHA-256 to compare with.
    """
    if sha256 is None:
        return
    wanted = sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise BundleError(
            f"sha256 {sha256!r:.80} must be the bundle's own 64 hexadecimal digits, as its maker's "
            "'seedtune inspect BUNDLE' shows them"
        )
    if found != wanted:
        raise BundleError(
            f"{path}: is the bundle {found}, not {wanted} (--sha256): get it again from "
            "where you got that hash"
        )


def _refuse(message: str) -> NoReturn:
    raise BundleError(message)


def _check_meaning(content: dict[str, Any], digest: str) -> Manifest:
    """Types are as the schema says; errors lack the file's name."""
    model, parts, tokenizer = content["model"], content["parts"], content["tokenizer"]
    vocabulary = model["vocab_size"]
    bounds = Bounds(**{field.name: content["bounds"][field.name] for field in fields(Bounds)})
    if bounds.rows < 2:
        _refuse("bounds.rows is 1, which fixes the number of rows; must be at least 2")
    if bounds.candidates > vocabulary:
        _refuse(f"bounds.candidates {bounds.candidates} exceeds the vocabulary of {vocabulary}")
    programs = _check_programs(content["programs"])
    for program in programs:
        most = program.generation.context if program.generation else LARGEST
        if bounds.prefix > (most if BEHIND in program.methods else 0):
            _refuse(
                f"bounds.prefix is {bounds.prefix}, and the {program.format} program reads no "
                "prefix, or none so long"
            )
    named = {VALUES, TOKENIZER, *(name for program in programs for name in program.files)}
    if content.get("text_head") is not None:
        named |= {TEXT}
    if content.get("terms") is not None:
        named |= {TERMS}
    if set(parts) - {CHAT} != named:
        _refuse(f"parts are {sorted(parts)!r:.200}, must be {sorted(named)!r:.200}")
    if tokenizer["sha256"] != parts[TOKENIZER]["sha256"]:
        _refuse("tokenizer.sha256 differs from the tokenizer part's")
    for token in (tokenizer["pad_id"], *tokenizer["end_ids"]):
        if not 0 <= token < vocabulary:
            _refuse(f"tokenizer: token {token} lies outside the vocabulary of {vocabulary}")
    for name in ("hidden_blocks", "mean_blocks"):
        if not all(1 <= below <= model["layers"] for below in content[name]):
            _refuse(f"{name} is {content[name]!r:.100}, must be numbers of blocks")
    hidden = tuple(content["hidden_blocks"])
    adapter = None
    if content.get("adapter") is not None:
        blocks = tuple(content["adapter"]["blocks"])
        if not blocks or blocks != hidden[: len(blocks)]:
            _refuse(
                f"adapter.blocks is {list(blocks)!r:.100}, must be the first of the hidden blocks "
                f"{list(hidden)}"
            )
        adapter = Adapter(content["adapter"]["width"], blocks)
    layers = _check_layers(content["layers"])
    entries = sum(layer.count for layer in layers)
    if content["mask"]["entries"] != entries:
        _refuse(f"mask.entries is {content['mask']['entries']}, the layers add up to {entries}")
    if entries < 1:
        _refuse("no layer has a sensitive value")
    if not 0 < content["mask"]["fraction"] <= 1:
        _refuse(f"mask.fraction is {content['mask']['fraction']}, must lie in (0, 1]")
    return Manifest(
        manifest=content,
        sha256=digest,
        programs=programs,
        bounds=bounds,
        hidden_blocks=hidden,
        mean_blocks=tuple(content["mean_blocks"]),
        adapter=adapter,
        text_head=_check_text_head(content, adapter, programs),
        terms=_check_terms(content, adapter, programs),
        layers=layers,
        parts={name: Part(part["sha256"], part["bytes"]) for name, part in parts.items()},
    )


def _check_programs(items: list[dict[str, Any]]) -> tuple[Program, ...]:
    programs: list[Program] = []
    for number, item in enumerate(items):
        where, methods = f"programs[{number}]", item["methods"]
        if not item["files"]:
            _refuse(f"{where}.files is empty")
        if GENERATE in methods and COLUMNS not in methods:
            _refuse(f"{where}.methods lacks {COLUMNS!r}, which writing takes")
        for method in methods.keys() & {GENERATE, BEHIND}:
            pairs = methods[method]["cache"]
            if not pairs or any(len(pair) != 2 for pair in pairs):
                _refuse(
                    f"{where}.methods.{method}.cache is {pairs!r:.100}, must be [heads, width] "
                    "of each block"
                )
        if any(item["format"] == program.format for program in programs):
            _refuse(f"{where}: format {item['format']!r} is listed twice")
        programs.append(Program(item["format"], tuple(item["files"]), item["activations"], methods))
    if not programs:
        _refuse("programs is empty; export the bundle again")
    return tuple(programs)


def _check_text_head(
    content: dict[str, Any], adapter: Adapter | None, programs: tuple[Program, ...]
) -> TextHeadInfo | None:
    text, model = content.get("text_head"), content["model"]
    if text is None:
        return None
    words = WordsPlace(*(text["words"][name] for name in ("file", "codes", "scales")))
    if adapter is None or adapter.width != model["hidden_size"]:
        _refuse("text_head needs an adapter that moves the hidden state")
    states = adapter.width * len(adapter.blocks)
    found = TextHeadInfo(text["outputs"], text["inputs"], words, text.get("softcap"))
    if found.outputs > adapter.width or found.inputs > states or found.entries > MOST_MOVED:
        _refuse(
            f"text_head of {found.outputs} x {found.inputs} exceeds the adapter's "
            f"{adapter.width} x {states}, or {MOST_MOVED} numbers"
        )
    if not any(words.file in program.files for program in programs):
        _refuse(f"text_head.words.file is {words.file[:80]!r}, not a program's")
    if adapter.width % WORDS_GROUP:
        _refuse(f"text_head: {adapter.width} is no multiple of {WORDS_GROUP}")
    sizes = words.sizes(model["vocab_size"], adapter.width)
    for first, size in zip((words.codes, words.scales), sizes, strict=True):
        if first + size > content["parts"][words.file]["bytes"]:
            _refuse(f"text_head.words lie outside {words.file}")
    return found


def _check_terms(
    content: dict[str, Any], adapter: Adapter | None, programs: tuple[Program, ...]
) -> TermsInfo | None:
    terms = content.get("terms")
    if terms is None:
        return None
    if adapter is None or content.get("text_head") is None:
        _refuse("terms need a text_head")
    if not any(terms["file"] in program.files for program in programs):
        _refuse(f"terms.file is {terms['file'][:80]!r}, not a program's")
    try:
        layers = {each["name"]: tuple(each["shape"]) for each in content["layers"]}
        size = content["parts"][terms["file"]]["bytes"]
        return check_terms(terms, adapter.width, content["model"], layers, size)
    except ValueError as error:
        _refuse(str(error))


def _check_layers(items: list[dict[str, Any]]) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    names: set[str] = set()
    offset = 0
    for number, item in enumerate(items):
        where, shape = f"layers[{number}]", item["shape"]
        if len(shape) != 2:
            _refuse(f"{where}.shape is {shape!r:.80}, must be [out, in]")
        layer = Layer(item["name"], (shape[0], shape[1]), item["offset"], item["count"])
        if layer.name in names:
            _refuse(f"{where}: {layer.name!r} is listed twice")
        if layer.offset != offset or layer.count > shape[0] * shape[1]:
            _refuse(
                f"{where} ({layer.name}): offset {layer.offset}, count {layer.count} "
                f"do not follow the layers before it (offset {offset})"
            )
        names.add(layer.name)
        layers.append(layer)
        offset += layer.count
    return tuple(layers)
