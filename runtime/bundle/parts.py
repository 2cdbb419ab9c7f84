"""The parts of a bundle besides its program: values, places, tokenizer and chat template, parsed
and checked."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from tokenizers import Tokenizer

from ..errors import BundleError
from ..schema import MapOf, check, parse_json
from .manifest import Layer


def parse_values(
    data: bytes, file: Path, layers: Sequence[Layer]
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """The two arrays of ``values.safetensors``, checked against the layers."""
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{file}: not a safetensors file ({error})") from error
    if set(tensors) != {"values", "indices"}:
        raise BundleError(f"{file}: must hold 'values' and 'indices', holds {sorted(tensors)}")
    expected = sum(layer.count for layer in layers)
    for name, dtype in (("values", np.float16), ("indices", np.int64)):
        if tensors[name].dtype != dtype:
            raise BundleError(
                f"{file}: {name} is {tensors[name].dtype}, must be {np.dtype(dtype).name}"
            )
        if tensors[name].shape != (expected,):
            raise BundleError(
                f"{file}: {name} has shape {list(tensors[name].shape)}, "
                f"the manifest's layers add up to [{expected}]"
            )
    values, indices = tensors["values"], tensors["indices"]
    for layer in layers:
        own = slice(layer.offset, layer.offset + layer.count)
        wrong = np.flatnonzero(~np.isfinite(values[own]))
        if len(wrong):
            raise BundleError(
                f"{file}: layer {layer.name}: value {wrong[0]} is {values[own][wrong[0]]}; "
                "values must be finite"
            )
        places = indices[own]
        size = layer.shape[0] * layer.shape[1]
        if layer.count and (places[0] < 0 or places[-1] >= size):
            raise BundleError(f"{file}: layer {layer.name}: an index lies outside 0..{size - 1}")
        if layer.count and bool((places[1:] <= places[:-1]).any()):
            raise BundleError(
                f"{file}: layer {layer.name}: indices must increase strictly (sorted, none twice)"
            )
    values.setflags(write=False)
    indices.setflags(write=False)
    return values, indices


_LARGEST_TOKENIZER = 1 << 28
_PREFIXED = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')


def parse_tokenizer(data: bytes, file: Path) -> Tokenizer:
    """The tokenizer, without truncation and padding, once it has tokenised a few letters."""
    if len(data) > _LARGEST_TOKENIZER:
        raise BundleError(f"{file}: has {len(data)} bytes, at most {_LARGEST_TOKENIZER} are read")
    try:
        if _PREFIXED.search(data):
            _check_merges(json.loads(data)["model"])
        tokenizer: Tokenizer = Tokenizer.from_buffer(data)  # as text it would take four times that
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _try_out(tokenizer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception for what does not parse, or a panic in Rust
        reason = str(error).splitlines() or [type(error).__name__]
        raise BundleError(f"{file}: not a tokenizer file ({reason[0][:200]})") from error
    return tokenizer


def _check_merges(model: dict[str, object]) -> None:
    """Refuse merges that the library would cut a prefix off that they do not have, and abort."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges", ())
    assert isinstance(prefix, str) and isinstance(merges, (list, tuple))
    for merge in merges:
        second = merge.rpartition(" ")[2] if isinstance(merge, str) else merge[1]
        if not second.startswith(prefix):
            raise ValueError(f"merge {merge!r} lacks the prefix {prefix!r}")


def _try_out(tokenizer: Tokenizer) -> None:
    try:
        tokenizer.encode("Ab \u00e9 1\n")
    except Exception:
        return  # an answer to this text; a panic, which goes on, is one to none


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """One more than the largest token id."""
    tokens: int = tokenizer.get_vocab_size(with_added_tokens=True)
    # Asked one by one: the list of all takes 60 MB of a vocabulary of 262 144.
    if all(tokenizer.id_to_token(each) is not None for each in range(tokens)):
        return tokens
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)  # with holes


def read_part(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from error


_LARGEST = 1 << 20


@dataclass(frozen=True)
class ChatPart:
    """The model's chat template: a JSON object of these two fields. Not compiled yet; see
    ``tasks.chat_template``."""

    template: str
    special_tokens: dict[str, str]

    def to_bytes(self) -> bytes:
        """The part."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode()


def parse_chat(data: bytes, file: Path) -> ChatPart:
    """Read the part.

    Raises:
        BundleError: too large, no JSON, or a field is missing or no text.
    """
    if len(data) > _LARGEST:
        raise BundleError(f"{file}: has {len(data)} bytes, at most {_LARGEST} are read")
    try:
        content = parse_json(data)
        check(content, {"template": str, "special_tokens": MapOf(str)})
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from error
    return ChatPart(content["template"], content["special_tokens"])
