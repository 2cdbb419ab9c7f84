"""Modules whose weight stays as it is stored, and stands in memory only while somebody uses it.

A model of 7 billion weights takes 28 GB in float32, and 14 GB as it is stored. Here a weight stays
in its mapped file, in its own number format, and becomes float32 whenever it is read. What it
becomes by rounding is kept small too, and in a mapped file where there is a ``Shelf``. So a pass
through the model needs room for one matrix.

To all others such a module is the ``nn.Linear`` or ``nn.Embedding`` that it was.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .mapped_pages import forget
from .tensor_file import read_header

_FORMATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE = 1 << 24
"""Weights."""


class Shelf:
    """A folder that int4 weights are put into and mapped from."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is there; whoever made it removes it."""
        self._folder, self._count = folder, 0

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same content, mapped.

        Raises:
            OSError: there is no room.
        """
        file = self._folder / f"{self._count:05}"
        self._count += 1
        flat = tensor.contiguous().view(-1)
        flat.view(torch.uint8).numpy().tofile(file)
        mapped = torch.from_file(str(file), True, flat.numel(), dtype=flat.dtype)
        return mapped.view(tensor.shape)


class Rest:
    """What the weight of one module is made from when it is read."""

    def __init__(self, stored: torch.Tensor) -> None:
        """From a tensor of any float format."""
        self.tensors: tuple[torch.Tensor, ...] = (stored,)
        self.make: Callable[..., nn.Parameter] = self._float32
        self._is_mapped = stored.dtype is torch.float32
        """Whether the weight is the stored tensor itself."""
        self.zeros: tuple[Any, ...] | None = None
        """Index of entries that are read as zero."""
        self.shelf: Shelf | None = None
        self.held: nn.Parameter | None = None

    def weight(self) -> nn.Parameter:
        """A weight to use once."""
        made = self.make(*self.tensors)
        if not self._is_mapped:
            self.let_go()
        return made

    def becomes(self, make: Callable[..., nn.Parameter], *tensors: torch.Tensor) -> None:
        """Make the weight from other tensors from now on, which go to the shelf if there is one."""
        if self.shelf is not None:
            tensors = tuple(self.shelf.put(tensor) for tensor in tensors)
        self.let_go()
        self.make, self.tensors = make, tensors
        self._is_mapped = False
        self.let_go()

    def let_go(self) -> None:
        """Give back the pages that reading or writing brought in."""
        for tensor in self.tensors:
            forget(tensor)

    def _float32(self, stored: torch.Tensor) -> nn.Parameter:
        if stored.dtype is torch.float32:
            weight = stored if self.zeros is None else stored.clone()
        else:
            weight = _widened(stored)
        if self.zeros is not None:
            weight[self.zeros] = 0.0
        return nn.Parameter(weight, requires_grad=False)


def _widened(stored: torch.Tensor) -> torch.Tensor:
    """In float32, made piece by piece: both formats of a large matrix never stand beside each
    other."""
    weight = torch.empty(stored.shape, dtype=torch.float32)
    rows = max(1, _PIECE // max(1, stored[0].numel()))
    for piece, into in zip(stored.split(rows), weight.split(rows), strict=True):
        into.copy_(piece)
        forget(piece)
    return weight


class Stored:
    """Mixed into a module's class by ``keep_stored_``; ``weight`` is made at each reading."""

    rest: Rest

    @property
    def weight(self) -> nn.Parameter:
        return self.rest.weight() if self.rest.held is None else self.rest.held

    def _apply(self, function: Callable[..., Any], recurse: bool = True) -> Any:
        """What ``to`` and its like call."""
        self.rest.tensors = tuple(function(tensor) for tensor in self.rest.tensors)
        return super()._apply(function, recurse)  # type: ignore[misc]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = super().forward(x)  # type: ignore[misc]
        if self.rest.held is None:
            self.rest.let_go()
        return found


@functools.cache
def _stored(kind: type) -> type:
    return type(f"Stored{kind.__name__}", (Stored, kind), {})


def keep_stored_(module: nn.Module) -> Rest:
    """Make a linear layer or an embedding one whose weight is made when it is read, if it is not
    one already; what it is made from."""
    if not isinstance(module, Stored):
        stored = module.weight.data
        assert isinstance(stored, torch.Tensor)
        del module.weight
        module.rest = Rest(stored)  # type: ignore[assignment]
        module.__class__ = _stored(type(module))  # type: ignore[arg-type]  # a type has a hash
    rest: Any = module.rest
    assert isinstance(rest, Rest)
    return rest


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The number format of all tensors in safetensors ``files``; float32 if there are several, or
    where a file has another form, since then tensors are not mapped as they are."""
    found = set()
    for file in files:
        if file.suffix != ".safetensors":
            return torch.float32
        found |= {entry["dtype"] for entry in read_header(file)[0].values()}
    return _FORMATS.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def keep_stored(model: Any) -> Any:
    """The transformers model ``model`` once more, with the same weights, of any float format: those
    of linear layers and of the embedding are made float32 at each use, the others are float32.

    It is built anew since what is derived from a configuration, as rotary frequencies are, was
    rounded to the format of ``model``.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        found = type(model)(model.config).requires_grad_(False)
    found.generation_config = model.generation_config
    found.load_state_dict(model.state_dict(), assign=True, strict=False)
    found.tie_weights()
    table = found.get_input_embeddings()
    for module in list(found.modules()):
        if isinstance(module, nn.Linear) or module is table:
            keep_stored_(module)
    for tensor in (*found.parameters(), *found.buffers()):
        if tensor.is_floating_point():
            # A copy, since one norm in use would keep all of its file mapped.
            tensor.data = tensor.data.to(torch.float32, copy=True)
    return found


def put_zeros_(linear: nn.Linear, index: tuple[Any, ...]) -> None:
    """Make the entries at ``index`` zero, in no file and in no tensor that others may hold."""
    keep_stored_(linear).zeros = index


def stored_modules(program: nn.Module) -> Iterator[Any]:
    """Those modules of ``program``."""
    return (module for module in program.modules() if isinstance(module, Stored))


@contextmanager
def held(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, weights are made once and are the same at each reading."""
    own = [module for module in modules if isinstance(module, Stored)]
    made: dict[int, nn.Parameter] = {}  # an output head may have the embedding's
    for module in own:
        key = module.rest.tensors[0].data_ptr()
        if key not in made:
            made[key] = module.rest.weight()
        module.rest.held = made[key]
    try:
        yield
    finally:
        for module in own:
            module.rest.held = None
            module.rest.let_go()


@contextmanager
def standing_in(weights: Mapping[nn.Module, nn.Parameter]) -> Iterator[None]:
    """Inside, modules that ``keep_stored_`` changed are plain ones with these weights."""
    kinds = {module: type(module) for module in weights}
    for module, weight in weights.items():
        module.__class__ = kinds[module].__bases__[1]
        module.register_parameter("weight", weight)
    try:
        yield
    finally:
        for module, kind in kinds.items():
            del module.weight
            module.__class__ = kind
