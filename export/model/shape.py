"""The shape of a model, read from its configuration or GGUF header without loading any weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from seedtune.runtime.errors import ModelError

from ..quiet import first_line, quiet
from .decoder_linears import decoder_linears
from .gated_blocks import suited_blocks
from .load_model import located
from .model_hash import check_config


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on. Counts are of parameters."""

    name: str
    architecture: str
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    cache_width: int  # numbers of a token that its keys and values are, over all blocks
    vocabulary: int
    linears: dict[str, tuple[int, int]]  # decoder matrices by name: (out, in)
    embedding: int
    head: int  # of its own; 0 where the head shares the embedding
    other: int  # norms, biases, position embeddings
    gguf: bool
    upper_blocks: int = 0  # those that a program takes terms of
    tokenizer_bytes: int = 0  # of tokenizer.json; 0 where there is none yet
    tokenizer_pieces: int = 0  # its tokens and merges; 0 likewise

    @property
    def linear_weights(self) -> int:
        """Weights of the decoder's matrices: what is profiled and quantised to int4."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.embedding + self.head + self.other

    @property
    def largest_linear(self) -> int:
        return max(rows * columns for rows, columns in self.linears.values())


def read_shape(source: str | Path) -> ModelShape:
    """Reads the shape of a Hugging Face folder, a ``.gguf`` file or a model on the hub.

    The model is built on PyTorch's meta device, where tensors have a shape but no memory, so the
    figures are exact for every architecture that transformers knows.

    Raises:
        ModelError: nothing readable there.
        DownloadError: the hub does not deliver it.
    """
    path, place = located(source, weights=False)
    with quiet():
        try:
            from transformers import AutoConfig, AutoModelForCausalLM

            if path.is_file():
                config = AutoConfig.from_pretrained(
                    path.parent, gguf_file=path.name, trust_remote_code=False
                )
            else:
                config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            check_config(config, source)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except ModelError:
            raise
        except Exception as error:  # transformers raises many kinds; all mean "cannot be read"
            told = f"{source}: cannot read the shape of the model: {first_line(error)}"
            raise ModelError(told) from error
    linears = {
        name: (linear.out_features, linear.in_features)
        for name, linear in decoder_linears(model).items()
    }
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    own_head = 0 if head is None or head.weight is embedding else head.weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    text = config.get_text_config()
    kept = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    weights = sum(rows * columns for rows, columns in linears.values())
    return ModelShape(
        name=path.stem if path.is_file() or place is None else place.repository,
        architecture=type(model).__name__,
        blocks=text.num_hidden_layers,
        hidden=text.hidden_size,
        # The widest input of a matrix is the inner width of the feed-forward block.
        intermediate=max(columns for _, columns in linears.values()),
        heads=text.num_attention_heads,
        cache_width=2 * text.num_hidden_layers * kept * width,
        vocabulary=text.vocab_size,
        linears=linears,
        embedding=embedding.numel(),
        head=own_head,
        other=total - weights - embedding.numel() - own_head,
        gguf=path.is_file(),
        upper_blocks=len(suited_blocks(model)),
        **_tokenizer(path / "tokenizer.json"),
    )


def _tokenizer(file: Path) -> dict[str, int]:
    if not file.is_file():
        return {}
    try:
        text = file.read_bytes()
        model = json.loads(text)["model"]
        pieces = len(model["vocab"]) + len(model.get("merges") or ())
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ModelError(f"{file}: not a tokenizer file ({error})") from error
    return {"tokenizer_bytes": len(text), "tokenizer_pieces": pieces}
