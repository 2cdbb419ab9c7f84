"""The bundle's manifest: its fields, its version and what they must satisfy among themselves."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BundleError
from ..schema import SHA256, ListOf, Maybe, Real, Text, Whole, check, parse_json

FORMAT = "seedtune-bundle"
VERSION = 3
"""That is written and read: one version, others are refused by name."""
MANIFEST = "manifest.json"
VALUES = "values.safetensors"
TOKENIZER = "tokenizer.json"
CHAT = "chat.json"
"""May be missing: the model's chat template (see ``chat``)."""
WORDS_GROUP = 32
"""Codes of the output head's int4 weights that share a scale."""
TEXT = "text.safetensors"
"""May be missing: what a head for text is learned in (see ``text_frame``)."""
METHOD = "score"
"""Every program has it."""
GENERATE = "generate"
"""Programs that write have it, too."""
COLUMNS = "columns"
"""Makes what ``generate`` takes of values, once a text; programs of before take values."""
_PROGRAM_FILE = re.compile(r"[a-z][a-z0-9_-]{0,63}\.(pte|onnx|safetensors|json)")
"""Names of programs' files: plain, in one case, since a file system may know no other."""

_Number = (int, float)
_PART_SCHEMA = {"sha256": SHA256, "bytes": Whole()}
# See ``schema``. A field that is not listed is allowed: readers ignore what a later writer of the
# same version adds.
_BOUNDS_SCHEMA = dict.fromkeys(("probes", "rows", "length", "positions", "candidates"), int)
_SCHEMA: dict[str, Any] = {
    "model": {
        "name": Text(),
        "architecture": Text(),
        "sha256": str,
        "vocab_size": Whole(1, 2**31 - 1),
        "hidden_size": Whole(1, 2**31 - 1),
        "layers": Whole(0, 2**31 - 1),
    },
    "mask": {
        "method": Text(),
        "fraction": _Number,
        "entries": int,
        "profile_sha256": (str, type(None)),
    },
    "quantisation": {},
    "layers": list,
    "tokenizer": {"sha256": str, "pad_id": int, "vocab_size": int},
    "task": (dict, type(None)),
    "programs": list,
    "bounds": _BOUNDS_SCHEMA,
    "hidden_blocks": list,
    "mean_blocks": list,
    "adapter": (dict, type(None)),
    "text_head": Maybe(dict),
    "parts": dict.fromkeys((VALUES, TOKENIZER), _PART_SCHEMA),
    "sha256": str,
}
_ADAPTER_SCHEMA = {"width": Whole(1, 2**31 - 1), "blocks": ListOf(Whole(1, 2**31 - 1))}
_TEXT_HEAD_SCHEMA: dict[str, Any] = {
    "outputs": Whole(1, 2**16),
    "inputs": Whole(1, 2**16),
    "words": {"file": Text(), "codes": Whole(), "scales": Whole()},
    "softcap": Maybe(Real(1e-6, 1e6)),
}
_MOST_MOVED = 1 << 24
_PROGRAM_SCHEMA: dict[str, Any] = {
    "format": Text(),
    "files": list,
    "methods": dict,
    "activations": Text(),
}
_GENERATION_SCHEMA: dict[str, Any] = {
    "chunk": Whole(1, 2**31 - 1),
    "context": Whole(2, 2**31 - 1),
    "cache": list,
    "columns": Maybe(Whole(1, 2**31 - 1)),
}
_LAYER_SCHEMA: dict[str, Any] = {
    "name": Text(),
    "shape": ListOf(Whole(1, 2**31 - 1)),
    "offset": int,
    "count": int,
}
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Bounds:
    """Largest sizes that a program accepts; every size from 1 (length: 2) up to them works.

    ``rows`` counts rows of full length: what memory is planned for is their tokens, so more rows
    work if they are shorter (16 of 32 tokens where the bounds are 4 of 128).
    """

    probes: int
    """Rows of ``values`` evaluated in one pass."""
    rows: int
    """Rows of ``tokens`` at full length."""
    length: int
    """Tokens in a row."""
    positions: int
    """Hidden states scored in one pass."""
    candidates: int
    """Candidate tokens at each position."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 2 if field.name == "length" else 1
            if type(value) is not int or not least <= value <= _LARGEST:
                raise BundleError(
                    f"bounds.{field.name} is {value!r:.40}, must be an integer of at least {least}"
                )

    @property
    def tokens(self) -> int:
        """Tokens of one pass, padding included, for each probe."""
        return self.rows * self.length


DEFAULT_BOUNDS = Bounds(probes=2, rows=2, length=128, positions=128, candidates=16)
"""Of an export. Passes of 256 tokens and two probes are as fast a token as passes of 1024 (measured
on SmolLM2, 2 cores: 0.97x), and their activations take a quarter of the memory."""


@dataclass(frozen=True)
class Layer:
    """One weight matrix and its share ``[offset, offset + count)`` of the sensitive values."""

    name: str
    shape: tuple[int, int]
    """``(out, in)``."""
    offset: int
    count: int


@dataclass(frozen=True)
class Adapter:
    """What programs take as their fifth input, ``[D, S]``: it moves what the head reads."""

    width: int
    """D, of what the head reads."""
    blocks: tuple[int, ...]
    """Decoder blocks below each state that is read, the first of the hidden states."""


@dataclass(frozen=True)
class WordsPlace:
    """Where the output head's int4 weights lie, word after word, in a program's file."""

    file: str
    codes: int
    """Offset of uint8 ``[V, D / 2]``: two codes a byte, the first in its lower half; 8 is zero."""
    scales: int
    """Offset of bfloat16 ``[V, D / 32]``, little-endian: of each 32 codes."""

    @staticmethod
    def sizes(words: int, width: int) -> tuple[int, int]:
        """Bytes of the codes and of the scales."""
        return words * width // 2, words * (width // WORDS_GROUP) * 2


@dataclass(frozen=True)
class TextHeadInfo:
    """Of a head for text that can be learned with the bundle (see ``text_frame``)."""

    outputs: int
    """O: directions of what the output head reads along which it moves."""
    inputs: int
    """I: directions of the states that it reads."""
    words: WordsPlace
    softcap: float | None
    """Bound of the logits, ``cap * tanh(logit / cap)``, where the model has one."""

    @property
    def entries(self) -> int:
        """Numbers that are learned."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Part:
    """Size and SHA-256 (hex) of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Generation:
    """What ``generate`` takes; see ``export.program.generate_program``."""

    chunk: int
    """Tokens of one pass."""
    context: int
    """Tokens of a whole text, prompt and answer."""
    cache: tuple[tuple[int, int], ...]
    """Heads and width ``(KV, d)`` of the keys and values of each block."""
    columns: int = 0
    """F of what the method ``columns`` makes of values; 0 where ``generate`` takes values."""

    @property
    def token_bytes(self) -> int:
        """What the cache holds of one token."""
        return sum(2 * 4 * heads * width for heads, width in self.cache)


@dataclass(frozen=True)
class Program:
    """One form of the model that an engine runs. All of a bundle's take the same values."""

    format: str
    """What engines say that they run; no two programs of a bundle have the same."""
    files: tuple[str, ...]
    """Parts: the one that an engine opens, then others that it reads. Programs may share them."""
    activations: str
    """Their numbers, in words: losses of programs differ by this rounding."""
    methods: Mapping[str, Mapping[str, Any]]
    """Name to what is particular to it; ``score`` is always there."""

    @property
    def generation(self) -> Generation | None:
        """What ``generate`` takes; None if the program only scores."""
        if GENERATE not in self.methods:
            return None
        found = self.methods[GENERATE]
        cache = tuple((heads, width) for heads, width in found["cache"])
        columns = found.get("columns") or 0
        return Generation(found["chunk"], found["context"], cache, columns)


@dataclass(frozen=True)
class Manifest:
    """A manifest that is consistent in itself; the parts are still to be checked against it."""

    content: Mapping[str, Any]
    """As it was read."""
    sha256: str
    programs: tuple[Program, ...]
    bounds: Bounds
    """Of every program."""
    hidden_blocks: tuple[int, ...]
    """Decoder blocks below each hidden state that ``score`` returns, of whatever program."""
    mean_blocks: tuple[int, ...]
    """The same of those that are means over the row so far, which come last."""
    adapter: Adapter | None
    """Of every program; None if they take none."""
    text_head: TextHeadInfo | None
    layers: tuple[Layer, ...]
    parts: Mapping[str, Part]
    vocabulary: int
    tokenizer_vocabulary: int

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts.values())


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the manifest's canonical JSON without its own ``sha256`` field."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(data: bytes, folder: Path) -> Manifest:
    """Parse and check ``manifest.json``; ``folder`` only names the culprit in errors.

    Raises:
        BundleError: not JSON, another format or version, altered, or fields that are
            missing, of the wrong type, or contradict each other.
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
            f"{file}: has version {version!r:.40} of the format, this seedtune reads {VERSION}; "
            "use the seedtune that wrote it, or export the model again"
        )
    _check_types(content, _SCHEMA, "", file)
    digest = manifest_digest(content)
    if content["sha256"] != digest:
        raise BundleError(f"{file}: altered (its SHA-256 differs); copy the bundle again")
    return _check_meaning(content, digest, file)


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
            f"{path}: is the bundle {found}, not {wanted} (--sha256): take it again from "
            "whom you have that hash from"
        )


def _check_meaning(content: dict[str, Any], digest: str, file: Path) -> Manifest:
    def refuse(message: str) -> NoReturn:
        raise BundleError(f"{file}: {message}")

    try:
        bounds = Bounds(**{f.name: content["bounds"][f.name] for f in fields(Bounds)})
    except BundleError as error:
        refuse(str(error))
    vocabulary = content["model"]["vocab_size"]
    if bounds.candidates > vocabulary:
        refuse(f"bounds.candidates {bounds.candidates} exceeds the vocabulary of {vocabulary}")
    programs = _check_programs(content["programs"], file)
    named = {VALUES, TOKENIZER, *(name for program in programs for name in program.files)}
    text = content.get("text_head")
    if text is not None:
        named |= {TEXT}
    if set(content["parts"]) - {CHAT} != named:
        refuse(f"parts are {sorted(content['parts'])!r:.200}, must be {sorted(named)!r:.200}")
    _check_types(content["parts"], dict.fromkeys(content["parts"], _PART_SCHEMA), "parts.", file)
    if content["tokenizer"]["sha256"] != content["parts"][TOKENIZER]["sha256"]:
        refuse("tokenizer.sha256 differs from the tokenizer part's")
    if not 0 <= content["tokenizer"]["pad_id"] < vocabulary:
        refuse(f"tokenizer.pad_id {content['tokenizer']['pad_id']} lies outside the vocabulary")
    ends = content["tokenizer"].get("end_ids", [])
    if not isinstance(ends, list) or not all(type(n) is int and 0 <= n < vocabulary for n in ends):
        refuse(f"tokenizer.end_ids is {ends!r:.100}, must be a list of tokens")
    hidden = {}
    for name in ("hidden_blocks", "mean_blocks"):
        blocks = content[name]
        if not all(
            type(below) is int and 1 <= below <= content["model"]["layers"] for below in blocks
        ):
            refuse(f"{name} is {blocks!r:.100}, must be a list of numbers of blocks")
        hidden[name] = tuple(blocks)
    adapter = _check_adapter(content["adapter"], hidden["hidden_blocks"], file)
    layers = _check_layers(content["layers"], file)
    entries = sum(layer.count for layer in layers)
    if content["mask"]["entries"] != entries:
        refuse(f"mask.entries is {content['mask']['entries']}, the layers add up to {entries}")
    if entries < 1:
        refuse("no layer has a sensitive value")
    if not 0 < content["mask"]["fraction"] <= 1:
        refuse(f"mask.fraction is {content['mask']['fraction']}, must lie in (0, 1]")
    return Manifest(
        content=content,
        sha256=digest,
        programs=programs,
        bounds=bounds,
        hidden_blocks=hidden["hidden_blocks"],
        mean_blocks=hidden["mean_blocks"],
        adapter=adapter,
        text_head=(
            None if text is None else _check_text_head(text, adapter, programs, content, file)
        ),
        layers=layers,
        parts={
            name: Part(part["sha256"], part["bytes"]) for name, part in content["parts"].items()
        },
        vocabulary=vocabulary,
        tokenizer_vocabulary=content["tokenizer"]["vocab_size"],
    )


def _check_programs(items: list[Any], file: Path) -> tuple[Program, ...]:
    programs: list[Program] = []
    for number, item in enumerate(items):
        where = f"programs[{number}]"
        if not isinstance(item, dict):
            raise BundleError(f"{file}: {where} must be an object")
        _check_types(item, _PROGRAM_SCHEMA, f"{where}.", file)
        files, methods = item["files"], item["methods"]
        if not files or not all(_may_name_a_program(name) for name in files):
            raise BundleError(f"{file}: {where}.files is {files!r:.100}, must be plain file names")
        if METHOD not in methods or not all(isinstance(each, dict) for each in methods.values()):
            raise BundleError(f"{file}: {where}.methods must have {METHOD!r}, and objects only")
        if GENERATE in methods:
            _check_generation(methods[GENERATE], f"{where}.methods.{GENERATE}", file)
            if methods[GENERATE].get("columns") and COLUMNS not in methods:
                raise BundleError(f"{file}: {where}.methods lacks {COLUMNS!r}, which writing takes")
        if any(item["format"] == program.format for program in programs):
            raise BundleError(f"{file}: {where}: format {item['format']!r} is listed twice")
        programs.append(Program(item["format"], tuple(files), item["activations"], methods))
    if not programs:
        raise BundleError(f"{file}: programs is empty; export the bundle again")
    return tuple(programs)


def _check_generation(item: dict[str, Any], where: str, file: Path) -> None:
    _check_types(item, _GENERATION_SCHEMA, f"{where}.", file)
    pairs = item["cache"]
    if not pairs or not all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(n) is int and 1 <= n <= _LARGEST for n in pair)
        for pair in pairs
    ):
        raise BundleError(
            f"{file}: {where}.cache is {pairs!r:.100}, must be [heads, width] of each block"
        )


def _may_name_a_program(name: Any) -> bool:
    taken = (MANIFEST, VALUES, TOKENIZER, CHAT, TEXT)
    plain = isinstance(name, str) and _PROGRAM_FILE.fullmatch(name) is not None
    return plain and name not in taken


def _check_adapter(
    content: dict[str, Any] | None, states: tuple[int, ...], file: Path
) -> Adapter | None:
    if content is None:
        return None
    _check_types(content, _ADAPTER_SCHEMA, "adapter.", file)
    blocks = tuple(content["blocks"])
    if not blocks or blocks != states[: len(blocks)]:
        raise BundleError(
            f"{file}: adapter.blocks is {content['blocks']!r:.100}, must be the first of the "
            f"hidden blocks {list(states)}"
        )
    return Adapter(content["width"], blocks)


def _check_text_head(
    text: dict[str, Any],
    adapter: Adapter | None,
    programs: tuple[Program, ...],
    content: dict[str, Any],
    file: Path,
) -> TextHeadInfo:
    _check_types(text, _TEXT_HEAD_SCHEMA, "text_head.", file)
    model, parts, words = content["model"], content["parts"], WordsPlace(**text["words"])
    if adapter is None or adapter.width != model["hidden_size"]:
        raise BundleError(f"{file}: text_head needs an adapter that moves the hidden state")
    states = adapter.width * len(adapter.blocks)
    found = TextHeadInfo(text["outputs"], text["inputs"], words, text.get("softcap"))
    if found.outputs > adapter.width or found.inputs > states or found.entries > _MOST_MOVED:
        raise BundleError(
            f"{file}: text_head of {found.outputs} x {found.inputs} exceeds the adapter's "
            f"{adapter.width} x {states}, or {_MOST_MOVED} numbers"
        )
    if not any(words.file in program.files for program in programs):
        raise BundleError(f"{file}: text_head.words.file is {words.file[:80]!r}, not a program's")
    if adapter.width % WORDS_GROUP:
        raise BundleError(f"{file}: text_head: {adapter.width} is no multiple of {WORDS_GROUP}")
    sizes = words.sizes(model["vocab_size"], adapter.width)
    for first, size in zip((words.codes, words.scales), sizes, strict=True):
        if first + size > parts[words.file]["bytes"]:
            raise BundleError(f"{file}: text_head.words lie outside {words.file}")
    return found


def _check_layers(items: list[Any], file: Path) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    names: set[str] = set()
    offset = 0
    for number, item in enumerate(items):
        where = f"layers[{number}]"
        if not isinstance(item, dict):
            raise BundleError(f"{file}: {where} must be an object")
        _check_types(item, _LAYER_SCHEMA, f"{where}.", file)
        shape = item["shape"]
        if len(shape) != 2 or any(type(n) is not int or not 1 <= n <= _LARGEST for n in shape):
            raise BundleError(f"{file}: {where}.shape is {shape}, must be [out, in]")
        layer = Layer(item["name"], (shape[0], shape[1]), item["offset"], item["count"])
        if layer.name in names:
            raise BundleError(f"{file}: {where}: {layer.name!r} is listed twice")
        if layer.offset != offset or not 0 <= layer.count <= shape[0] * shape[1]:
            raise BundleError(
                f"{file}: {where} ({layer.name}): offset {layer.offset}, count {layer.count} "
                f"do not follow the layers before it (offset {offset})"
            )
        names.add(layer.name)
        layers.append(layer)
        offset += layer.count
    return tuple(layers)


def _check_types(
    content: Mapping[str, Any], schema: Mapping[str, Any], at: str, file: Path
) -> None:
    try:
        check(content, schema, at.removesuffix("."))
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from None
