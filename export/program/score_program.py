"""The eager module whose export is the program: tokens and values in, log-probabilities and hidden
states out."""

from typing import Any

import torch
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import ModelError
from torch import nn
from torch.overrides import TorchFunctionMode

from .block_tap import BlockTap, at_positions
from .row_attention import RowLayout, install_row_attention
from .sensitive_linear import ProbeValues


class QuantisedEmbedding(nn.Module):
    """Token embedding in int8 with one float scale a row; looks up with stock operators only."""

    def __init__(self, table: torch.Tensor) -> None:
        """Quantise ``table`` float32 ``[V, D]``."""
        super().__init__()
        scale = (table.abs().amax(dim=1, keepdim=True) / 127.0).clamp(min=1e-12)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", torch.round(table / scale).to(torch.int8))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 ``[M]`` to float32 ``[M, D]``."""
        rows = self.weight.index_select(0, tokens).to(torch.float32)
        return rows * self.scale.index_select(0, tokens)


class ScoreProgram(nn.Module):
    """``score(tokens [P, B, T], positions [P, N], candidates [P, N, C], values [P, K])``.

    Returns log-probabilities ``[P, N, C]`` and the tapped hidden states ``[P, N, D]`` (see
    ``block_tap``). Each probe has rows of its own: examples so can be perturbed one by one. Hidden
    states are gathered at ``positions`` (``b * T + t`` inside the probe's rows) before the output
    head: the head is 21 % of SmolLM2's forward and nobody reads the other logits.
    """

    def __init__(self, model: Any, probe_values: ProbeValues, bounds: Bounds) -> None:
        super().__init__()
        if model.get_output_embeddings() is None:
            raise ModelError(f"{type(model).__name__} has no language-modelling head")
        embedding = model.get_input_embeddings()
        with torch.no_grad():  # through the module: Gemma scales its embedding on the way out
            table = embedding(torch.arange(embedding.num_embeddings)).to(torch.float32)
        self.embedding = QuantisedEmbedding(table)
        self.backbone = model.base_model
        head = model.get_output_embeddings()
        # Tied to the embedding in many models: quantising the one must not touch the other.
        self.head = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
        self.head.weight = nn.Parameter(head.weight.data.clone(), requires_grad=False)
        if head.bias is not None:
            self.head.bias = nn.Parameter(head.bias.data.clone(), requires_grad=False)
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.probe_values = probe_values
        self.layout = RowLayout()
        install_row_attention(model, self.layout, bounds.length)
        self.tap = BlockTap(model)
        model.set_input_embeddings(nn.Embedding(1, 1))  # its table now lives in self.embedding
        self.mean = MeanAsLinear(self)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        candidates: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        probes, rows, length = tokens.shape
        packed = rows * length
        self.layout.begin(rows, length)
        self.probe_values.begin(values)
        embedded = self.embedding(tokens.reshape(probes * packed))
        places = torch.arange(length)[None, :].expand(rows, length).reshape(1, packed)
        with self.mean:
            hidden = self.backbone(
                inputs_embeds=embedded.view(probes, packed, embedded.shape[-1]),
                position_ids=places,
                use_cache=False,
            ).last_hidden_state
        self.probe_values.end()
        logits = self.head(at_positions(hidden, positions))
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        chosen = torch.log_softmax(logits, dim=-1).gather(2, candidates)
        with self.mean:
            return chosen, self.tap.take(positions, rows, length)


def for_each_probe(probes: int, *request: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``tokens [B, T]``, ``positions [N]`` and ``candidates [N, C]`` repeated for each probe."""
    return tuple(part[None].expand(probes, *part.shape).contiguous() for part in request)


class MeanAsLinear(TorchFunctionMode):
    """Writes the mean over the last axis, as RMS norms take it, as a product with 1/n.

    XNNPACK's mean needs four axes, so every RMS norm would leave the delegate and come back. As a
    fully connected layer with one output it stays inside: fewer delegates to lower and to call.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self._owner = [owner]  # in a list: a module must not register its own parent

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.mean, torch.mean) and len(args) in (1, 2):
            dim = args[1] if len(args) == 2 else kwargs.get("dim")
            rest = set(kwargs) - {"dim", "keepdim"}
            if dim in (-1, [-1], (-1,)) and kwargs.get("keepdim") and not rest:
                return nn.functional.linear(args[0], self._weight(args[0].shape[-1]))
        return func(*args, **kwargs)

    def _weight(self, width: int) -> torch.Tensor:
        owner, name = self._owner[0], f"mean_of_{width}"
        if not hasattr(owner, name):  # in the eager pass that export_program runs before tracing
            owner.register_buffer(name, torch.full((1, width), 1.0 / width))
        weight: torch.Tensor = getattr(owner, name)
        return weight


def example_inputs(bounds: Bounds, entries: int, vocab_size: int) -> tuple[torch.Tensor, ...]:
    """Inputs inside ``bounds`` whose sizes differ, so that tracing confuses no two of them."""
    rows = min(3, bounds.rows)
    length = min(20, bounds.length)
    probes = min(2, bounds.probes_at_most)
    scored = min(4, bounds.positions)
    choices = min(5, bounds.candidates)
    generator = torch.Generator().manual_seed(0)
    draw = lambda high, *shape: torch.randint(0, high, shape, generator=generator)  # noqa: E731
    return (
        draw(vocab_size, probes, rows, length),
        draw(rows * length, probes, scored),
        draw(vocab_size, probes, scored, choices),
        torch.zeros(probes, entries),
    )
