"""Surgery: every ``nn.Linear`` of the decoder becomes an int4 dense product plus a sparse term.

A matrix with sensitive entries computes

    y = dense(x * keep) + x[:, cols] @ scatter(base, values)

``dense`` is what int4 quantisation sees, with the columns of the sensitive entries set to zero:
those are computed in float as a whole. The second product is *column-compact*: Fisher-sensitive
entries sit in few input columns, so one small float product over those columns carries them all,
for all probes at once. ``base`` holds what else those columns carry.

Some facts of the exported program shape this file:

* Matrices that read the same input (query, key and value; gate and up) share their columns, so
  the gather and the masking of ``x`` happen once: 4 gathers a block instead of 7.
* ``base`` is float32 in the program. As float16 it would be half as large, but ExecuTorch's
  portable cast took 52 ms of a 450 ms forward.
* All scatters of one decoder block are one operator on one flat buffer. This keeps the graph, and
  with it the lowering time, small, while only one block's compact weights are alive at a time.
* To write, values are scattered once a text (``Columns``), not once a token.
* A matrix without a sensitive entry stays a plain linear: a zero-width product in an ExecuTorch
  program returns uninitialised memory, silently.

The layout follows peft's SHiRA (a value vector and fixed indices per layer), arXiv 2406.13175; the
method is Guo et al., arXiv 2406.02913, section 3.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError
from torch import nn

from ..model.stored_weight import held, put_zeros_


class ProbeValues:
    """Carries the program input ``values`` to the matrices during one forward pass.

    Plain Python state, not a module: ``torch.export`` sees only the tensors that pass through.
    Its caches go by number, never by ``id``: while tracing, reading a submodule makes a passing
    proxy object, and the next one may have the same ``id``.
    """

    def __init__(self) -> None:
        self.values: torch.Tensor | None = None
        self.scattered: torch.Tensor | None = None
        self._compact: dict[int, tuple[torch.Tensor, ...]] = {}
        self._inputs: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def begin(
        self, values: torch.Tensor | None = None, scattered: torch.Tensor | None = None
    ) -> None:
        """Start a forward pass with ``values`` float32 ``[P, K]``, or with what ``Columns`` made of
        them, float32 ``[P, F]``."""
        self.end()
        self.values, self.scattered = values, scattered

    def end(self) -> None:
        """Drop every tensor of the pass."""
        self.values = self.scattered = None
        self._compact.clear()
        self._inputs.clear()

    def compact(self, block: "BlockScatter") -> tuple[torch.Tensor, ...]:
        """The compact weights of one decoder block, scattered once per pass at most."""
        if block.start not in self._compact:
            if self.scattered is not None:
                parts = block.cut(self.scattered)
            else:
                assert self.values is not None
                parts = block(self.values)
            self._compact = {block.start: parts}
        return self._compact[block.start]

    def columns(
        self, columns: "SharedColumns", x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(x masked for the int8 path, x at the sensitive columns)``, once per distinct input."""
        known = self._inputs.get(columns.number)
        if known is None or known[0] is not x:
            known = (x, *columns(x))
            self._inputs = {columns.number: known}
        return known[1], known[2]


class SharedColumns(nn.Module):
    """The sensitive columns of one input, shared by the matrices that read it."""

    index: torch.Tensor
    keep: torch.Tensor

    def __init__(self, number: int, columns: torch.Tensor, in_features: int) -> None:
        super().__init__()
        self.number = number
        self.register_buffer("index", columns)
        keep = torch.ones(in_features)
        keep[columns] = 0.0
        self.register_buffer("keep", keep)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gathered = x.index_select(2, self.index)
        return x * self.keep, gathered


class BlockScatter(nn.Module):
    """Scatters one block's slice of ``values`` into its compact weights ``[P, C, out]`` each."""

    positions: torch.Tensor
    base: torch.Tensor

    def __init__(
        self,
        start: int,
        positions: torch.Tensor,
        base: torch.Tensor,
        shapes: list[tuple[int, int]],
        place: int,
    ) -> None:
        """``place`` is where the block's weights begin among those of all blocks."""
        super().__init__()
        self.start, self.stop = start, start + positions.numel()
        self.place = place
        self.shapes = shapes
        self.sizes = [columns * out for columns, out in shapes]
        self.register_buffer("positions", positions.reshape(1, -1))
        self.register_buffer("base", base.reshape(1, -1))

    def flat(self, values: torch.Tensor) -> torch.Tensor:
        """The weights of all matrices behind each other, ``[P, C * out + ...]``."""
        probes = values.shape[0]
        return self.base.expand(probes, -1).scatter(
            1, self.positions.expand(probes, -1), values[:, self.start : self.stop]
        )

    def cut(self, scattered: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The block's weights out of those of all blocks, float32 ``[P, F]``."""
        parts, first = [], self.place
        for size, shape in zip(self.sizes, self.shapes, strict=True):
            parts.append(scattered[:, first : first + size].view(scattered.shape[0], *shape))
            first += size
        return tuple(parts)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        probes, flat = values.shape[0], self.flat(values)
        if len(self.sizes) == 1:
            return (flat.view(probes, *self.shapes[0]),)
        parts = flat.split(self.sizes, dim=1)
        return tuple(
            part.view(probes, *shape) for part, shape in zip(parts, self.shapes, strict=True)
        )


class Columns(nn.Module):
    """``columns(values [1, K])``: the compact weights of all blocks, scattered, ``[1, F]``."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        found = [each for each in program.modules() if isinstance(each, BlockScatter)]
        found.sort(key=lambda block: block.place)
        self.blocks: Iterable[BlockScatter] = nn.ModuleList(found)  # type: ignore[assignment]
        self.size = sum(sum(block.sizes) for block in found)
        """F."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([block.flat(values) for block in self.blocks], dim=1)


class SensitiveLinear(nn.Module):
    """``y = dense(x) + x[:, cols] @ compact`` for ``x`` float32 ``[P, M, in]``.

    OPT hands its feed-forward layers ``[P * M, in]``; that comes back in the same form.
    """

    def __init__(
        self,
        layer: str,
        dense: nn.Linear,
        columns: SharedColumns,
        block: BlockScatter,
        slot: int,
        probe_values: ProbeValues,
    ) -> None:
        super().__init__()
        self.layer = layer
        """Its name in the model."""
        self.dense = dense
        self.columns = columns
        self.block = block
        self.slot = slot
        self.probe_values = probe_values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.probe_values.compact(self.block)[self.slot]
        if x.dim() == 2:
            masked, gathered = self.columns(x.view(weight.shape[0], -1, x.shape[-1]))
        else:
            masked, gathered = self.probe_values.columns(self.columns, x)
        found: torch.Tensor = self.dense(masked) + torch.bmm(gathered, weight)
        return found.flatten(0, 1) if x.dim() == 2 else found


@dataclass(frozen=True)
class Surgery:
    """What ``insert_sensitive_linears`` did.

    Attributes:
        probe_values: hand it the values before each forward pass.
        values: float16 ``[K]``, the sensitive weights in layer order.
        indices: int64 ``[K]``, flat row-major positions inside each matrix.
        layers: ``(name, (out, in), offset, count)`` of every matrix with sensitive entries.
        compact_share: compact weights as a share of the dense weights.
    """

    probe_values: ProbeValues
    values: npt.NDArray[np.float16]
    indices: npt.NDArray[np.int64]
    layers: list[tuple[str, tuple[int, int], int, int]]
    compact_share: float


def insert_sensitive_linears(
    model: nn.Module,
    mask: Mapping[str, npt.NDArray[np.int64]],
    groups: list[list[str]],
) -> Surgery:
    """Replace, in place, every masked linear of ``model`` by a ``SensitiveLinear``.

    Args:
        model: a ``transformers`` causal language model in float32.
        mask: layer name to sorted flat indices, as ``profile.masks`` makes them.
        groups: names of the linears that read the same input tensor, in model order.

    Raises:
        ModelError: an index lies outside its matrix, or the mask has no entry.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    sizes = {name: (m.out_features, m.in_features) for name, m in linears.items()}
    for name, flat in mask.items():
        if flat.size and int(flat[-1]) >= sizes[name][0] * sizes[name][1]:
            raise ModelError(
                f"mask: {name}: an index lies outside its matrix of {list(sizes[name])}"
            )
    names = [name for name, flat in mask.items() if flat.size]
    if not names:
        raise ModelError("mask: no sensitive entry at all; raise the fraction")

    shared: dict[str, SharedColumns] = {}
    for number, group in enumerate(groups):
        members = [name for name in group if name in names]
        if not members:
            continue
        width = linears[members[0]].in_features
        found = [np.unique(mask[name] % width) for name in members]
        union = torch.from_numpy(np.unique(np.concatenate(found)))
        columns = SharedColumns(number, union, width)
        shared.update(dict.fromkeys(members, columns))

    probe_values = ProbeValues()
    values: list[torch.Tensor] = []
    layers: list[tuple[str, tuple[int, int], int, int]] = []
    offset, compact_size = 0, 0
    for block_names in _blocks(names):
        start, positions, bases, shapes, flat_size = offset, [], [], [], 0
        for name in block_names:
            out, width = sizes[name]
            index = shared[name].index
            entries = torch.from_numpy(mask[name])
            rows, cols = entries // width, entries % width
            with held([linears[name]]):
                weight = linears[name].weight.data
                # fp16 first: the exported values are what the device starts from.
                values.append(weight[rows, cols].to(torch.float16))
                compact = weight[:, index].t().contiguous()
                del weight
            place = torch.searchsorted(index, cols)
            positions.append(flat_size + place * out + rows)
            bases.append(compact.reshape(-1))
            shapes.append((index.numel(), out))
            layers.append((name, (out, width), offset, entries.numel()))
            flat_size += compact.numel()
            offset += entries.numel()
        block = BlockScatter(start, torch.cat(positions), torch.cat(bases), shapes, compact_size)
        for slot, name in enumerate(block_names):
            dense = linears[name]
            put_zeros_(dense, (slice(None), shared[name].index))
            own = SensitiveLinear(name, dense, shared[name], block, slot, probe_values)
            model.set_submodule(name, own)
        compact_size += flat_size
    total = sum(sizes[name][0] * sizes[name][1] for name in mask)
    return Surgery(
        probe_values,
        torch.cat(values).numpy(),
        np.concatenate([mask[name] for name in names]),
        layers,
        compact_size / total,
    )


def input_groups(model: nn.Module, names: list[str], tokens: torch.Tensor) -> list[list[str]]:
    """Find which linears read the same tensor, by running ``tokens`` int64 ``[1, T]`` once."""
    seen: dict[int, list[str]] = {}
    alive: list[torch.Tensor] = []  # keeps ids unique while the pass runs

    def note(name: str, x: torch.Tensor) -> None:
        alive.append(x)
        seen.setdefault(id(x), []).append(name)

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: note(name, args[0])
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            model(tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return list(seen.values())


def _blocks(names: list[str]) -> list[list[str]]:
    """Group names by decoder block: the first number in the dotted path."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        blocks.setdefault(number.group(1) if number else "", []).append(name)
    return list(blocks.values())
