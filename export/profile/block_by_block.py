"""Gradients of a decoder's loss, one block at a time.

Forwards, each block is run on all sequences, and what it reads is kept. Backwards, from the last
block to the first, each is run on them again, this time to be differentiated. It is what gradient
checkpointing does, with the loops over blocks and sequences swapped: so the weights of a block are
needed twice in all, not twice a sequence.

The model's own code says what its blocks take besides hidden states, and does what comes before and
after them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..model.decoder_blocks import decoder_blocks


class _Reached(Exception):
    """The first block, with what it reads."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class BlockByBlock:
    """The pass of some sequences through ``model`` and back: ``begin``, ``forward`` of each block,
    ``losses``, ``backward`` of each block from the last on, ``end``."""

    def __init__(self, model: Any, sequences: list[torch.Tensor]) -> None:
        """Of int64 ``[1, length]``, all of one length.

        Raises:
            ModelError: the model has no list of its blocks.
        """
        self._model, self._sequences = model, sequences
        self.blocks = decoder_blocks(model)
        self.ends = [model.get_input_embeddings(), model.get_output_embeddings()]
        """Large modules before and behind the blocks."""
        self._others: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        """What each block takes besides: masks and positions, alike for all sequences."""
        self._in_tuples: list[bool] = []
        """Whether each returns its hidden state inside a tuple."""
        self._read: list[list[torch.Tensor]] = []
        """What each block reads, then what the last one gives, of every sequence."""
        self._gradients: list[torch.Tensor] = []
        """Of the loss by what the block above the next one reads, of every sequence."""

    def begin(self) -> None:
        """Find what the first block reads of every sequence, and what the blocks take besides."""

        def note(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._others.append(_without_hidden(args, kwargs)[1:])
            self._in_tuples.append(isinstance(output, tuple))

        hooks = [block.register_forward_hook(note, with_kwargs=True) for block in self.blocks]
        try:
            self._model(input_ids=self._sequences[0], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        self._read = [[self._first(tokens) for tokens in self._sequences]]

    def forward(self, number: int) -> None:
        """Run block ``number`` on all sequences, the ones below it having been run."""
        self._read.append([self._run(number, hidden) for hidden in self._read[number]])

    def losses(self) -> Iterator[torch.Tensor]:
        """Mean next-token loss of each sequence, in float32, differentiated once it was looked at;
        all blocks having been run."""
        last = len(self.blocks) - 1
        for tokens, given in zip(self._sequences, self._read.pop(), strict=True):
            leaf = given.detach().requires_grad_(True)

            def run(number: int, hidden: torch.Tensor, leaf: torch.Tensor = leaf) -> torch.Tensor:
                return leaf if number == last else hidden

            with self._replaced(run):
                logits = self._model(input_ids=tokens, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])
            yield loss
            loss.backward()
            assert leaf.grad is not None
            self._gradients.append(leaf.grad)

    def backward(self, number: int) -> None:
        """Differentiate block ``number`` by its weights that ask for it, the ones above it having
        been."""
        for index, given in enumerate(self._read.pop()):
            leaf = given.detach().requires_grad_(True)
            self._run(number, leaf).backward(self._gradients[index])
            assert leaf.grad is not None
            self._gradients[index] = leaf.grad

    def end(self) -> None:
        """Differentiate what comes before the first block."""
        for tokens, gradient in zip(self._sequences, self._gradients, strict=True):
            hidden = self._first(tokens)
            if hidden.requires_grad:
                hidden.backward(gradient)

    def _run(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        args, kwargs = self._others[number]
        output = self.blocks[number](hidden, *args, **kwargs)
        found: torch.Tensor = output[0] if self._in_tuples[number] else output
        return found

    def _first(self, tokens: torch.Tensor) -> torch.Tensor:
        def stop(number: int, hidden: torch.Tensor) -> torch.Tensor:
            raise _Reached(hidden)

        with self._replaced(stop):
            try:
                self._model(input_ids=tokens, use_cache=False)
            except _Reached as reached:
                return reached.hidden
        raise AssertionError("no block was run")

    @contextmanager
    def _replaced(self, run: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Inside, ``run`` stands for the blocks, of which it gets the number."""

        def standing_for(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                found = run(number, _without_hidden(args, kwargs)[0])
                return (found,) if self._in_tuples[number] else found

            return forward

        for number, block in enumerate(self.blocks):
            block.forward = standing_for(number)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward


def _without_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden state among a block's arguments, and the others."""
    if args:
        return args[0], args[1:], kwargs
    others = dict(kwargs)
    return others.pop("hidden_states"), (), others
