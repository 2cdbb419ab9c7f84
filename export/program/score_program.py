"""The eager module whose export is the program: tokens and values in, log-probabilities and hidden
states out."""

from collections.abc import Sequence
from typing import Any

import torch
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import ModelError
from torch import nn
from torch.overrides import TorchFunctionMode

from ..model.stored_weight import held
from .block_tap import BlockTap
from .low_rank_terms import LowRankTerms
from .row_attention import Prefix, RowLayout, install_row_attention
from .sensitive_linear import Surgery


class QuantisedEmbedding(nn.Module):
    """Token embedding in int8 with one float scale a row; looks up with stock operators only."""

    scale: torch.Tensor
    weight: torch.Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        """Quantise what ``embedding`` gives for each token: Gemma scales it on the way out."""
        super().__init__()
        size = embedding.num_embeddings, embedding.embedding_dim
        scale, weight = torch.empty(size[0], 1), torch.empty(size, dtype=torch.int8)
        # In blocks, into what is there already: a table as a whole would stand there three times in
        # float32, and blocks that are kept between those that go would leave holes as large.
        with torch.no_grad(), held([embedding]):
            for tokens in torch.arange(size[0]).split(4096):
                rows = embedding(tokens).to(torch.float32)
                scale[tokens] = (rows.abs().amax(dim=1, keepdim=True) / 127.0).clamp(min=1e-12)
                weight[tokens] = torch.round(rows / scale[tokens]).to(torch.int8)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 ``[M]`` to float32 ``[M, D]``."""
        rows = self.weight.index_select(0, tokens).to(torch.float32)
        return rows * self.scale.index_select(0, tokens)


class ScoreProgram(nn.Module):
    """``score(tokens [B, T], positions [N], candidates [N, C], values [P, K], adapter [D, S],
    terms)``.

    Returns log-probabilities ``[P, N, C]`` and the tapped hidden states ``[P, N, W]`` (see
    ``block_tap``). Hidden states are gathered at ``positions`` (flat ``b * T + t``) before the
    output head: the head is 21 % of SmolLM2's forward and nobody reads the other logits.

    What the head reads, ``h`` ``[D]``, is moved by ``adapter @ x``, with ``x`` ``[S]`` the first S
    of the position's tapped states: those of the token itself. Zeros leave it as it is, to the bit.

    Where the model takes ``terms`` (see ``low_rank_terms``), it also returns what their gradient is
    made of: 1 over the root mean square of each state that an adapter reads, ``[P, N, S / D]``, and
    block by block the residual stream in front of the MLP, ``[P, N, D]``.

    With more arguments, block by block keys ``[P, KV, d, L]`` and values ``[P, KV, L, d]``, it is
    the method ``behind``: every row stands behind a prefix of L tokens that have these. Means of
    tapped states are of the row's own tokens.
    """

    def __init__(self, model: Any, surgery: Surgery, bounds: Bounds, rank: int = 0) -> None:
        """Args: rank: of the terms that the program takes where the model suits them; 0: none."""
        super().__init__()
        self.bounds, self.entries = bounds, len(surgery.values)
        if model.get_output_embeddings() is None:
            raise ModelError(f"{type(model).__name__} has no language-modelling head")
        self.embedding = QuantisedEmbedding(model.get_input_embeddings())
        self.backbone = model.base_model
        self.head = model.get_output_embeddings()
        # The program alone holds it from here on, so that its float weight goes when it is int4.
        model.set_output_embeddings(nn.Identity())
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.probe_values = surgery.probe_values
        self.layout = RowLayout()
        self.cache_shapes: tuple[tuple[int, int], ...] = ()
        """``(KV, d)`` of each block's keys and values, once ``prepare_program`` has run it."""
        install_row_attention(model, self.layout, bounds.length, bounds.prefix)
        self.tap = BlockTap(model)
        self.terms = LowRankTerms.of(model, rank)
        self.adapter_shape = (
            self.head.in_features,
            len(self.tap.blocks) * model.config.hidden_size,
        )
        """``(D, S)``."""
        model.set_input_embeddings(nn.Embedding(1, 1))  # its table now lives in self.embedding
        self.mean = MeanAsLinear(self)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        candidates: torch.Tensor,
        values: torch.Tensor,
        adapter: torch.Tensor | None = None,
        *more: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        terms, prefix = self.split(more)
        blocks = list(zip(prefix[::2], prefix[1::2], strict=True))
        read, states, inside = self.states(tokens, positions, values, terms, blocks)
        logits = self.logits(read, states, adapter)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        scored, choices = candidates.shape
        chosen = log_probabilities.gather(
            2, candidates[None].expand(values.shape[0], scored, choices)
        )
        return chosen, states, *inside

    def split(
        self, more: Sequence[torch.Tensor]
    ) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """The terms, and what comes behind them."""
        count = len(self.terms_shapes)
        return more[:count], more[count:]

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs inside the bounds whose sizes differ, so that tracing confuses no two of them."""
        bounds = self.bounds
        rows, length = min(3, bounds.rows), min(20, bounds.length)
        scored, choices = min(4, bounds.positions), min(5, bounds.candidates)
        generator = torch.Generator().manual_seed(0)

        def draw(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, high, shape, generator=generator)

        vocabulary = len(self.embedding.weight)
        return (
            draw(vocabulary, rows, length),
            draw(rows * length, scored),
            draw(vocabulary, scored, choices),
            torch.zeros(min(2, bounds.probes), self.entries),
            torch.zeros(self.adapter_shape),
            *map(torch.zeros, self.terms_shapes),
        )

    @property
    def terms_shapes(self) -> list[tuple[int, int]]:
        """Of the terms that it takes; none if it takes none."""
        return [] if self.terms is None else self.terms.shapes

    def states(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        values: torch.Tensor,
        terms: Sequence[torch.Tensor] = (),
        prefix: Sequence[Prefix] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """What the head reads untouched at ``positions``, ``[P, N, D]``, the tapped states, and
        what a gradient of terms is made of."""
        hidden = self._hidden(tokens, values, terms, prefix, keep=True)
        inside: list[torch.Tensor] = []
        with self.mean:
            if self.terms is not None:
                inside = [self.tap.sizes(positions), *self.terms.middles(positions)]
                self.terms.end()
            states = self.tap.take(positions, *tokens.shape)
        return hidden.index_select(1, positions), states, inside

    def own_states(
        self, tokens: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every token what the head reads untouched, ``[P, M, D]``, and the states that an
        adapter reads, ``[P, M, S]``: without means, which take a weight for each pair of tokens."""
        hidden = self._hidden(tokens, values)
        with self.mean:
            return hidden, self.tap.take_own(slice(None))

    def _hidden(
        self,
        tokens: torch.Tensor,
        values: torch.Tensor,
        terms: Sequence[torch.Tensor] = (),
        prefix: Sequence[Prefix] = (),
        keep: bool = False,
    ) -> torch.Tensor:
        """The last state of every token, ``[P, M, D]``; earlier ones are in ``tap``."""
        rows, length = tokens.shape
        probes = values.shape[0]
        packed = rows * length
        self.layout.begin(rows, length, prefix)
        self.probe_values.begin(values)
        if self.terms is not None:
            self.terms.begin(terms, keep)
        embedded = self.embedding(tokens.reshape(packed))
        places = torch.arange(length)
        if prefix:
            first = prefix[0][1].shape[2]
            places = torch.arange(first, first + length)
        places = places[None, :].expand(rows, length).reshape(1, packed)
        with self.mean:
            hidden: torch.Tensor = self.backbone(
                inputs_embeds=embedded[None].expand(probes, packed, embedded.shape[-1]),
                position_ids=places,
                use_cache=False,
            ).last_hidden_state
        self.probe_values.end()
        return hidden

    def logits(
        self, hidden: torch.Tensor, states: torch.Tensor, adapter: torch.Tensor | None
    ) -> torch.Tensor:
        """Float32 ``[P, N, V]`` of hidden states ``[P, N, D]`` and the tapped ``[P, N, S]`` or
        more."""
        if adapter is not None:  # as it always is in a program
            # A linear layer, whose weight may be an input: XNNPACK runs it as one.
            hidden = hidden + nn.functional.linear(states[:, :, : adapter.shape[1]], adapter)
        logits: torch.Tensor = self.head(hidden)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


class PrefixProgram(nn.Module):
    """``score(tokens, positions, candidates, values, adapter, kept [Q], terms, prefix)``, for
    engines that read a prefix with the same graph.

    ``terms`` and ``prefix`` are as in ``ScoreProgram``; L may be 0. Behind the results of ``score``
    come the pass's own keys and values at ``kept``, flat as ``positions`` are: block by block keys
    ``[P, KV, d, Q]`` and values ``[P, KV, Q, d]``. Q may be 0, so that scoring keeps none.

    It shares every module with ``score``.
    """

    def __init__(self, score: ScoreProgram) -> None:
        super().__init__()
        self.score = score

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        candidates: torch.Tensor,
        values: torch.Tensor,
        adapter: torch.Tensor,
        kept: torch.Tensor,
        *more: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        self.score.layout.keep(kept)
        try:
            found = self.score(tokens, positions, candidates, values, adapter, *more)
        finally:
            own = self.score.layout.take()
        return (*found, *own)


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
