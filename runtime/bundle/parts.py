"""The parts of a bundle besides its program: values, places and tokenizer, parsed and checked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from tokenizers import Tokenizer

from ..errors import BundleError
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


def parse_tokenizer(data: bytes, file: Path) -> Tokenizer:
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise BundleError(f"{file}: not a tokenizer file ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: ids may have holes, so counting tokens is not enough."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def read_part(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
