"""What the torch engine runs: a list of aten operators, and int4 weights that stay int4.

A program's JSON (``export.lower.torch_graph`` writes it)::

    version   1
    inputs    [name, dtype, shape] of the arguments, in order; null for a size that may vary
    outputs   the same of the results
    tensors   name to [dtype, shape, file, offset]
    nodes     [name, operator, arguments, named arguments], in order

An argument is a number, text, list or null as it stands, ``{"value": NAME}`` for what was named
before, or ``{"dtype"|"memory_format"|"device"|"float": ..}``. Operators are aten's own by their
full name, arithmetic on sizes (``size.mul``), ``getitem``, and two of this project:
``seedtune.int4_linear.default`` (see ``export.lower.int4_operator``) and ``seedtune.add_product``,
which adds a batched product to a value that nothing else reads.

Each value goes as soon as nothing needs it. Each int4 matrix is unpacked into one workspace, right
before its product, for all probes at once. On the CPU weights are mapped from the files and their
pages given back after use; on a GPU they stay in its memory.
"""

import mmap
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import EngineError
from ..schema import ListOf, Whole, check, parse_json
from .memory import MB

VERSION = 1
GROUP = 32
_SCHEMA = {
    "version": Whole(1),
    "inputs": ListOf(list),
    "outputs": ListOf(list),
    "tensors": dict,
    "nodes": ListOf(list),
}
_SIZES: dict[str, Callable[..., Any]] = {
    "size.mul": operator.mul,
    "size.add": operator.add,
    "size.sub": operator.sub,
    "size.div": operator.floordiv,
    "getitem": operator.getitem,
}
_ROWS_AT_ONCE = {"cpu": 256}
"""Of a matrix: what is unpacked of them fits a core's cache. Elsewhere calls cost more."""
_PAGE = mmap.PAGESIZE
_LARGE = 1 << 18
"""Bytes of a tensor whose pages are worth a call of the system."""


class _Value(NamedTuple):
    """An argument that is computed."""

    name: str


class _Node(NamedTuple):
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    last: tuple[str, ...]
    """Values that nothing after this node reads."""
    weights: tuple[str, ...]
    """Tensors that it reads."""


class TorchProgram:
    """A program with its weights; see the module's text."""

    def __init__(
        self,
        program: bytes,
        files: Mapping[str, Path],
        device: torch.device,
        dtype: torch.dtype,
        shown: Path,
        room: int | None = None,
    ) -> None:
        """Read ``program`` and map or load its weights.

        Args:
            files: those that it names.
            dtype: of the dense products; all else is float32.
            shown: the program's name in errors.
            room: bytes that there are on a GPU.

        Raises:
            EngineError: it is newer than this engine, or does not make sense, or its weights do not
                fit.
        """
        self.device, self._dtype, self._shown = device, dtype, shown
        try:
            content = parse_json(program)
            check(content, _SCHEMA)
            if content["version"] > VERSION:
                raise EngineError(
                    f"{shown}: version {content['version']} is newer than this seedtune runs "
                    f"({VERSION}); update seedtune"
                )
            self.inputs = {name: tuple(shape) for name, _, shape in content["inputs"]}
            """Shapes by name, in order; None for a size that may vary."""
            self.outputs = {name: tuple(shape) for name, _, shape in content["outputs"]}
            """The same of the results."""
            weights = _Weights(content["tensors"], files)
            self.weight_bytes, entries = weights.bytes, weights.largest_matrix
            self.workspace_bytes = entries * dtype.itemsize
            if room is not None and self.weight_bytes + self.workspace_bytes > room:
                raise EngineError(
                    f"{shown}: weights of {self.weight_bytes / MB:.0f} MB and a workspace of "
                    f"{self.workspace_bytes / MB:.0f} MB exceed the {room / MB:.0f} MB that there "
                    "are on the GPU; raise the memory limit (--memory-limit), free the card, or "
                    "take --engine torch-int4:cpu"
                )
            self._weights = weights.on(device)
            self._nodes = self._read(content["nodes"])
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise EngineError(f"{shown}: does not make sense: {error}") from error
        self._workspace = torch.empty(entries, dtype=dtype, device=device)

    @torch.no_grad()
    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results for ``inputs``, which lie on the program's device.

        Raises:
            RuntimeError: an operator fails, or memory does not suffice (``OutOfMemoryError``).
        """
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        for node in self._nodes:
            args = [self._given(each, values) for each in node.args]
            kwargs = {name: self._given(each, values) for name, each in node.kwargs.items()}
            values[node.name] = node.function(*args, **kwargs)
            del args, kwargs
            for name in node.last:
                del values[name]
            for name in node.weights:
                self._weights.give_back(name)
        return [values[name] for name in self.outputs]

    def _given(self, argument: Any, values: dict[str, Any]) -> Any:
        if isinstance(argument, _Value):
            found = values.get(argument.name)
            return self._weights[argument.name] if found is None else found
        if isinstance(argument, list):
            return [self._given(each, values) for each in argument]
        return argument

    def _read(self, items: list[list[Any]]) -> list[_Node]:
        known = {*self.inputs, *self._weights}
        nodes: list[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        for name, target, args, *rest in items:
            function = self._function(target)
            read = [self._argument(each) for each in args]
            kwargs = {key: self._argument(each) for key, each in (rest[0] if rest else {}).items()}
            unknown = [each for each in _values([read, *kwargs.values()]) if each not in known]
            if unknown:
                raise ValueError(f"{name} takes {unknown[0]}, which nothing gives")
            known.add(name)
            nodes.append((name, function, tuple(read), kwargs))
        if not known.issuperset(self.outputs):
            raise ValueError("an output is given by nothing")
        seen = {*self.outputs, *self._weights}
        found: list[_Node] = []
        for name, function, given, kwargs in reversed(nodes):
            taken = [name, *_values([list(given), *kwargs.values()])]
            last = tuple(dict.fromkeys(each for each in taken if each not in seen))
            seen.update(last)
            weights = tuple(each for each in taken if each in self._weights)
            found.append(_Node(name, function, given, kwargs, last, weights))
        return found[::-1]

    def _function(self, target: str) -> Callable[..., Any]:
        own = {
            "seedtune.int4_linear.default": self._int4_linear,
            "seedtune.add_product": _add_product,
        }
        if target in own:
            return own[target]
        if target in _SIZES:
            return _SIZES[target]
        space, name, overload = target.split(".")
        if space == "aten":
            packet = getattr(torch.ops.aten, name, None)
            found: Callable[..., Any] | None = getattr(packet, overload, None)
            if found is not None:
                return found
        raise EngineError(
            f"{self._shown}: torch {torch.__version__} has no operator {target}; update torch"
        )

    def _argument(self, written: Any) -> Any:
        if isinstance(written, list):
            return [self._argument(each) for each in written]
        if not isinstance(written, dict):
            return written
        ((kind, value),) = written.items()
        match kind:
            case "value":
                return _Value(value)
            case "device":
                return self.device
            case "float":
                return float(value)
            case "dtype" | "memory_format":
                return getattr(torch, value)
        raise ValueError(f"argument of kind {kind!r}")

    def _int4_linear(
        self, x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """``x`` float32 ``[..., in]`` times the matrix, float32 ``[..., out]``."""
        out, groups, _ = packed.shape
        weight = self._workspace[: out * groups * GROUP].view(out, groups, GROUP // 2, 2)
        step = _ROWS_AT_ONCE.get(self.device.type, 8192)
        for first in range(0, out, step):
            rows = slice(first, first + step)
            codes, part = packed[rows], weight[rows]
            part[..., 0] = codes & 15
            part[..., 1] = codes >> 4
            part.sub_(8).mul_(scales[rows].to(part.dtype)[..., None, None])
        product = torch.nn.functional.linear(x.to(self._dtype), weight.view(out, groups * GROUP))
        return product.to(torch.float32)


class _Weights(Mapping[str, torch.Tensor]):
    """Tensors of the files, by name, mapped until they are moved to a GPU."""

    def __init__(self, table: dict[str, Any], files: Mapping[str, Path]) -> None:
        """Map what ``table`` names; nothing is read."""
        maps = {name: _mapped(path) for name, path in files.items()}
        self._tensors: dict[str, torch.Tensor] = {}
        self._pages: dict[str, tuple[mmap.mmap, int, int]] = {}
        self.bytes = 0
        for name, (dtype_name, shape, file, offset) in table.items():
            dtype = getattr(torch, dtype_name)
            count = torch.Size(shape).numel()
            size = count * dtype.itemsize
            held = maps[file]
            if not 0 <= offset <= len(held) - size:
                raise ValueError(f"tensor {name} lies outside {file}")
            self.bytes += size
            self._tensors[name] = _view(held, dtype, count, offset).view(shape)
            if size >= _LARGE:
                first = offset // _PAGE * _PAGE
                self._pages[name] = (held, first, offset + size - first)

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest int4 matrix."""
        codes = [each for each in self._tensors.values() if each.dtype is torch.uint8]
        return max((2 * each.numel() for each in codes), default=0)

    def on(self, device: torch.device) -> "_Weights":
        """Itself, on ``device``."""
        if device.type != "cpu":
            self._tensors = {name: each.to(device) for name, each in self._tensors.items()}
            self._pages.clear()
        return self

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def give_back(self, name: str) -> None:
        """Let the system take the pages of a large tensor, which come back when it is read."""
        pages = self._pages.get(name)
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            held, first, size = pages
            held.madvise(mmap.MADV_DONTNEED, first, size)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _view(held: mmap.mmap, dtype: torch.dtype, count: int, offset: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it must not be written to
        return torch.frombuffer(held, dtype=dtype, count=count, offset=offset)


def _values(arguments: Any) -> Iterator[str]:
    if isinstance(arguments, _Value):
        yield arguments.name
    elif isinstance(arguments, list):
        for each in arguments:
            yield from _values(each)


def _add_product(value: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``value + a @ b`` in place, float32 ``[P, M, out]``."""
    return value.baddbmm_(a, b)
