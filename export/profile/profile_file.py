"""The profile file: the mean squared gradient of every linear weight of a model.

One safetensors file, so that it is read without running anything and layer by layer; its metadata
binds it to the weights and the text that it was measured on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from seedtune.runtime.errors import ModelError
from seedtune.runtime.files import replacing

from ..model.mapped_pages import forget_bytes
from ..model.tensor_file import Kind, TensorFile, read_header

FORMAT = "seedtune-profile"
VERSION = 3


@dataclass(frozen=True)
class LayerProfile:
    """One linear weight.

    ``fisher`` float32 [out, in], mean squared gradient per sequence (SmolLM2: median 6e-8,
    the smallest step of float16, which would therefore lose the lower half).
    """

    fisher: npt.NDArray[np.float32]

    def let_go(self) -> None:
        """Give back the pages that reading brought in, where it lies in a mapped file."""
        if self.fisher.flags.c_contiguous:
            forget_bytes(self.fisher.ctypes.data, self.fisher.nbytes)


@dataclass(frozen=True)
class Profile:
    """All linear weights of one model in model order, with what they were measured on."""

    layers: dict[str, LayerProfile]
    model_name: str
    model_sha256: str
    text_sha256: str
    settings: dict[str, Any]

    @property
    def entries(self) -> int:
        """Number of weights that were ranked."""
        return sum(layer.fisher.size for layer in self.layers.values())

    @property
    def sha256(self) -> str:
        """Hash of what was measured, and on what: the same in memory and read back from a file."""
        about = self.model_sha256, self.text_sha256, self.settings, list(self.layers)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for layer in self.layers.values():
            digest.update(np.ascontiguousarray(layer.fisher).data)
            layer.let_go()
        return digest.hexdigest()


@contextmanager
def writing_profile(
    file: Path, about: Profile, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Callable[[str, LayerProfile], None]]:
    """A function that writes a layer by its name, each of ``shapes`` once, in any order: one
    safetensors file in one step, ``<layer>.fisher`` each (SmolLM2-135M: 425 MB).

    Args:
        about: what was measured, and on what; its layers are not looked at.
        shapes: of the matrices, in model order.

    Raises:
        ModelError: the folder cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "model_name": about.model_name,
        "model_sha256": about.model_sha256,
        "text_sha256": about.text_sha256,
        "settings": json.dumps(about.settings, sort_keys=True),
        "layers": json.dumps(list(shapes)),  # safetensors does not keep the model order
    }
    kinds = {f"{name}.fisher": Kind(torch.float32, shape) for name, shape in shapes.items()}
    try:
        with replacing(file) as partial, closing(TensorFile(partial, kinds, metadata)) as sink:

            def write(name: str, layer: LayerProfile) -> None:
                sink.write(f"{name}.fisher", layer.fisher)

            yield write
    except OSError as error:
        raise ModelError(f"{file}: cannot write the profile: {error}") from error


def _mapped(file: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a safetensors file whose header was checked, as views of the file.

    Raises:
        ValueError: one is not float32.
    """
    content = np.memmap(file, np.uint8, "r")
    header, begin = read_header(file)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] != "F32":
            raise ValueError(f"{name} is {about['dtype']}, must be F32")
        first, last = (begin + offset for offset in about["data_offsets"])
        tensors[name] = content[first:last].view(np.float32).reshape(about["shape"])
    return tensors


def load_profile(file: Path) -> Profile:
    """Reads what ``writing_profile`` wrote. The arrays lie in the mapped file: pages of it come in
    as they are read, and go when the last of the arrays does.

    Raises:
        ModelError: not a profile, of another version, truncated, or not finite.
    """
    with _reading(file) as metadata:
        tensors = _mapped(file)
        layers = {
            name: LayerProfile(tensors[f"{name}.fisher"]) for name in json.loads(metadata["layers"])
        }
        profile = Profile(
            layers,
            metadata["model_name"],
            metadata["model_sha256"],
            metadata["text_sha256"],
            json.loads(metadata["settings"]),
        )
    for name, layer in layers.items():
        finite = np.isfinite(layer.fisher.max(initial=0.0))
        layer.let_go()
        if not finite:
            raise ModelError(f"{file}: layer {name} holds values that are not finite")
        if layer.fisher.ndim != 2:
            raise ModelError(f"{file}: layer {name} is no matrix")
    return profile


def profile_settings(file: Path) -> dict[str, Any]:
    """The settings alone, without a look at the arrays: those of a large model take minutes.

    Raises:
        ModelError: not a profile, of another version, or truncated.
    """
    with _reading(file) as metadata:
        settings: dict[str, Any] = json.loads(metadata["settings"])
    return settings


@contextmanager
def _reading(file: Path) -> Iterator[dict[str, str]]:
    """The metadata of a profile whose header was checked; what goes wrong within is of the file."""
    try:
        # Its tensors would be copies, or, as torch's, views of a mapping that could be written to,
        # for which a system wants as much memory as the file is long.
        with safe_open(file, framework="np") as source:
            metadata = source.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{file}: not a sensitivity profile")
        if int(metadata["version"]) != VERSION:
            raise ModelError(
                f"{file}: profile version {metadata['version']}, this seedtune reads {VERSION}; "
                "profile the model again"
            )
        yield metadata
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{file}: cannot read the profile: {error}") from error
