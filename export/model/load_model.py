"""Causal language models from a Hugging Face folder, the hub or a GGUF file, ready to be read."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from seedtune.runtime.bundle.parts import ChatPart, vocabulary_of
from seedtune.runtime.errors import ModelError
from seedtune.runtime.hub import Place, place_of

from ..quiet import first_line, quiet
from .adapter import CONFIG, base_of, is_adapter, merged_folder
from .dequantise import dequantise
from .kept_model import kept_model
from .mapped_pages import forget
from .model_hash import check_config, model_sha256
from .stored_weight import keep_stored, stored_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DESCRIBED = ("*.json", "*.txt", "*.jinja")
_WEIGHTS = ("*.safetensors", "*.model")


@dataclass
class LoadedModel:
    """A model in evaluation mode, no parameter asking for a gradient.

    ``sha256`` identifies what it computes (see ``model_hash``): it is the same for a GGUF file and
    for the folder that its dequantised weights are saved to, and does not depend on the dtype asked
    for.
    """

    model: Any  # a transformers PreTrainedModel with a language-modelling head
    tokenizer: PreTrainedTokenizerFast
    tokenizer_json: bytes
    name: str
    sha256: str
    origin: str | None = None
    """Its place on the hub with the commit; None of what was here already."""

    @property
    def chat(self) -> ChatPart | None:
        """The tokenizer's chat template, the one named ``default`` of several; None without."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            return None
        names = self.tokenizer.special_tokens_map
        plain = {name: text for name, text in names.items() if isinstance(text, str)}
        return ChatPart(template, plain)

    @property
    def end_ids(self) -> list[int]:
        """Tokens with which the model ends a text, as its tokenizer and its generation settings
        name them; the tokenizer's, which stands behind texts to learn, comes first."""
        settings = getattr(self.model, "generation_config", None)
        named = getattr(settings, "eos_token_id", None)
        found = [self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
        vocabulary = self.model.config.vocab_size
        known = [end for end in found if end is not None and 0 <= end < vocabulary]
        return list(dict.fromkeys(known))


Dtype = torch.dtype | Literal["auto", "stored"]


def load_causal_lm(
    source: str | Path, dtype: Dtype = torch.float32, *, base: str | None = None
) -> LoadedModel:
    """Loads the model at ``source``: a folder, a ``.gguf`` file, or a model on the hub, as its id
    ``org/name`` or its place ``hf://org/name[@revision][/path]``.

    A GGUF file is dequantised once; the result is kept as a folder in the cache under the hash of
    the file, because dequantising takes several times as long as loading the folder. The folder of
    an adapter of peft is merged with its base model once, and kept likewise.

    Code that a folder or a hub id brings along is never run, nor asked about.

    Args:
        dtype: of the weights; ``auto`` takes the stored one. With ``stored`` the model computes in
            float32 and its large weights stay in their files, mapped (see ``stored_weight``);
            files of several formats, or other than safetensors, are read as float32.
        base: of an adapter the model below it; by default the one that it names.

    Raises:
        ModelError: nothing there, not a causal language model, no fast tokenizer, a weight missing
            or not finite; the message names the source and the layer.
        DownloadError: the hub does not deliver it.
    """
    path, place = located(source)
    if place is None:
        return _load(path, path.resolve().name, dtype, base)
    return replace(_load(path, place.repository, dtype, base), origin=str(place))


def located(source: str | Path, *, weights: bool = True) -> tuple[Path, Place | None]:
    """Where a model lies here, downloaded if need be, and its place on the hub with the commit;
    None for the place where ``source`` is a path here.

    Args:
        weights: False leaves those on the hub, but for a GGUF file's.

    Raises:
        ModelError: it is neither a path here nor like a hub id.
        DownloadError: the hub does not deliver it.
    """
    place = place_of(source)
    if place is None and Path(source).exists():
        return Path(source), None
    if place is None and isinstance(source, str) and _HUB_ID.fullmatch(source):
        place = place_of(f"hf://{source}")
    if place is None:
        raise ModelError(f"{source}: no such folder or file, and not a hub id such as org/name")
    with quiet():
        place = place.pinned()
        if place.path.lower().endswith(".gguf"):
            return place.file(), place
        return place.folder((*_DESCRIBED, *(_WEIGHTS if weights else ()))), place


def _load(path: Path, name: str, dtype: Dtype, base: str | None) -> LoadedModel:
    """The same from a folder or file here."""
    if is_adapter(path):
        merged = merged_folder(path, base or base_of(path), load_causal_lm)
        return _load_folder(merged, name, dtype)
    if base is not None:
        raise ModelError(f"{path}: is no adapter ({CONFIG} beside its weights): leave out --base")
    if path.is_dir():
        return _load_folder(path, name, dtype)
    if path.suffix.lower() != ".gguf":
        raise ModelError(
            f"{path}: not a GGUF file; give a Hugging Face folder, a hub id or a .gguf file"
        )
    return _load_folder(_dequantised_folder(path), path.stem, dtype)


def _load_folder(folder: Path, name: str, dtype: Dtype) -> LoadedModel:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: holds no config.json, so it is not a Hugging Face model folder"
        )
    files = weight_files(folder)
    with quiet():
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            # No accelerate and no low-memory path: plain CPU tensors that we own.
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=stored_dtype(files) if dtype == "stored" else dtype,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
            )
            model, info = found
        except Exception as error:  # transformers raises many kinds; all mean "cannot be read"
            raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}") from error
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise ModelError(f"{folder}: tokenizer unusable: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would fill these with random numbers and only log a warning.
        raise ModelError(f"{folder}: the weight files lack {missing[0]} ({len(missing)} missing)")
    check_config(model.config, folder)
    tokenizer_json = _tokenizer_json(tokenizer, model.config.vocab_size, folder)
    _check_finite(model, folder)
    sha256 = model_sha256(files, model.config)
    if dtype == "stored":
        model = keep_stored(model)
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, tokenizer_json, name, sha256)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, sorted; safetensors win over PyTorch pickles."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise ModelError(f"{folder}: holds no weights (*.safetensors or pytorch_model*.bin)")


def _check_finite(model: Any, folder: Path) -> None:
    for name, parameter in model.named_parameters():
        # The sum is not finite if any entry is not; it saves a mask as large as the weight.
        # An overflow of the sum alone is told apart by looking again, entry by entry.
        weight = parameter.detach()
        for rows in weight.split(4096):
            if not torch.isfinite(rows.float().sum()) and not bool(torch.isfinite(rows).all()):
                layer = name.removesuffix(".weight")
                raise ModelError(f"{folder}: layer {layer} holds NaN or infinite weights")
        forget(weight)


def _tokenizer_json(tokenizer: Any, vocabulary: int, folder: Path) -> bytes:
    """The ``tokenizer.json`` that the device reads, as the ``tokenizers`` library writes it; of at
    most as many tokens as the model has."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{folder}: has no fast tokenizer, which the bundle needs")
    tokens = vocabulary_of(backend)
    if tokens > vocabulary:
        raise ModelError(
            f"{folder}: its tokenizer has {tokens} tokens, the model only {vocabulary}; it "
            "is another model's tokenizer"
        )
    return str(backend.to_str()).encode()


def _dequantised_folder(file: Path) -> Path:
    """Folder in the cache that holds the float32 weights and tokenizer of a GGUF file."""
    with file.open("rb") as source:
        if source.read(4) != b"GGUF":
            raise ModelError(
                f"{file}: does not start with the GGUF magic; it is damaged or no GGUF"
            )
        source.seek(0)
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return kept_model(
        f"gguf-{digest[:32]}", f"the dequantised {file.name}", lambda made: dequantise(file, made)
    )
