"""What the torch engine runs: a list of aten operators, and int4 weights that stay int4.

A program's JSON (``export.lower.torch_graph`` writes it)::

    version   2
    inputs    [name, dtype, shape] of the arguments, in order; null for a size that may vary
    outputs   the same of the results
    tensors   name to [dtype, shape, file, offset]
    nodes     [name, operator, arguments, named arguments], in order

Inputs and results are those of ``score``, terms as ``term_0`` and on; of a program that reads a
prefix, as ``export.program.score_program`` says, ``kept`` and ``prefix_0`` and on, too.

An argument is a number, text, list or null as it stands, ``{"value": NAME}`` for what was named
before, or ``{"dtype"|"memory_format"|"device"|"float": ..}``. Operators are those of
``torch_operators`` and two of this project: ``seedtune.int4_linear.default`` (see
``export.lower.int4_operator``) and ``seedtune.add_product``, which adds a batched product to a
value that was made new and that nothing else reads.

A program may be odd or meant to harm. When it is opened it is run once without numbers, on sizes
alone, so that what does not fit together, or would take memory without end, is refused there.

Each value goes as soon as nothing needs it. Each int4 matrix is unpacked into one workspace, right
before its product, for all probes at once. On the CPU weights are mapped from the files and their
pages given back after use; on a GPU they stay in its memory.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..bundle.terms import inside_count
from ..errors import EngineError
from ..schema import ListOf, Whole, check, parse_json
from .memory import MB
from .torch_operators import (
    ADD_PRODUCT,
    DTYPES,
    INT4_LINEAR,
    may_name,
    memory_format,
    operator_of,
)
from .torch_weights import Weights

VERSION = 2
GROUP = 32
_SCHEMA = {
    "version": Whole(1),
    "inputs": list,
    "outputs": list,
    "tensors": dict,
    "nodes": ListOf(list),
}
_Shape = tuple[str, tuple[int | str | None, ...]]
_INPUTS: dict[str, _Shape] = {
    "tokens": ("int64", (None, None)),
    "positions": ("int64", (None,)),
    "candidates": ("int64", (None, None)),
    "values": ("float32", (None, "K")),
    "adapter": ("float32", ("D", "S")),
}
"""Type and shape of each; None for a size that may vary, a name for one that is read."""
_ODD = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(AssertionError, RuntimeError),
)
"""What code over odd content ends in; torch's own are of the last kinds."""
_MAKES_NEW = (INT4_LINEAR, "aten.add.Tensor")
_MOST_BYTES = 1 << 28
"""Most bytes of a value in the smallest pass: one row of two tokens, one candidate."""
_META = torch.device("meta")
_ROWS_AT_ONCE = {"cpu": 256}
"""Rows of a matrix that are unpacked at once fit a core's cache. Elsewhere calls cost more."""


class _Value(NamedTuple):
    """An argument that is computed."""

    name: str


class _Device:
    """An argument: where the program runs."""


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
        cache: Sequence[tuple[int, int]] = (),
        terms: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Read ``program`` and map or load its weights.

        Args:
            files: those that it names.
            dtype: of the dense products; all else is float32.
            shown: the program's name in errors.
            room: bytes that there are on a GPU.
            cache: ``(KV, d)`` of each block of a prefix, where it reads one.
            terms: shapes of the low-rank terms that it takes.

        Raises:
            EngineError: it is of another version, names an operator that no export uses, does not
                make sense, or its weights do not fit.
        """
        self.device, self._dtype, self._shown = device, dtype, shown
        self.terms_shapes = tuple(terms)
        self._takes = {**_INPUTS, **_more_inputs(cache, terms)}
        self._inside = inside_count(len(terms))
        try:
            content = parse_json(program)
            check(content, _SCHEMA)
            if content["version"] != VERSION:
                raise EngineError(
                    f"{shown}: is of version {content['version']}, this seedtune runs {VERSION}; "
                    "export the bundle again"
                )
            self.entries, self.adapter_shape = _read_inputs(content["inputs"], self._takes)
            self._outputs = [name for name, _, _ in content["outputs"]]
            weights = Weights(content["tensors"], files)
            self.weight_bytes, entries = weights.bytes, weights.largest_matrix
            self.workspace_bytes = entries * dtype.itemsize
            if room is not None and self.weight_bytes + self.workspace_bytes > room:
                raise EngineError(
                    f"{shown}: weights of {self.weight_bytes / MB:.0f} MB and a workspace of "
                    f"{self.workspace_bytes / MB:.0f} MB exceed the {room / MB:.0f} MB that there "
                    "are on the GPU; raise the memory limit (--memory-limit), free the card, or "
                    "take --engine torch-int4:cpu"
                )
            self._weights = weights
            self._nodes = self._read(content["nodes"])
            self.hidden_width = self._try_out()
        except _ODD as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise EngineError(f"{shown}: does not make sense: {reason}") from error
        self._weights = weights.on(device)
        self._workspace = torch.empty(entries, dtype=dtype, device=device)

    @torch.no_grad()
    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results for ``inputs``, which lie on the program's device.

        Raises:
            RuntimeError: an operator fails, or memory does not suffice (``OutOfMemoryError``).
        """
        values: dict[str, Any] = dict(zip(self._takes, inputs, strict=True))
        for node in self._nodes:
            args = [self._given(each, values, self._weights) for each in node.args]
            kwargs = {
                name: self._given(each, values, self._weights) for name, each in node.kwargs.items()
            }
            values[node.name] = node.function(*args, **kwargs)
            del args, kwargs
            for name in node.last:
                del values[name]
            for name in node.weights:
                self._weights.give_back(name)
        return [values[name] for name in self._outputs]

    @torch.no_grad()
    def _try_out(self) -> int:
        """Run the smallest pass on sizes alone; the width of the hidden states that it returns."""
        weights = {
            name: torch.empty_like(each, device=_META) for name, each in self._weights.items()
        }
        sizes = {"K": self.entries, "D": self.adapter_shape[0], "S": self.adapter_shape[1]}
        values: dict[str, Any] = {}
        for name, (dtype, shape) in self._takes.items():
            size = [each if isinstance(each, int) else sizes.get(each or "", 1) for each in shape]
            if name == "tokens":
                size = [1, 2]
            values[name] = torch.empty(size, dtype=DTYPES[dtype], device=_META)
        for node in self._nodes:
            args, kwargs = (
                self._given(each, values, weights, _META) for each in (list(node.args), node.kwargs)
            )
            if node.function == self._int4_linear:
                found: Any = _int4_linear_sizes(*args, **kwargs)
            else:
                found = node.function(*args, **kwargs)
            for each in found if isinstance(found, (list, tuple)) else [found]:
                if isinstance(each, torch.Tensor) and each.nbytes > _MOST_BYTES:
                    raise ValueError(f"{node.name} takes {each.nbytes} bytes for one row of text")
            values[node.name] = found
        logp, hidden, *more = (values[name] for name in self._outputs)
        inside, own = more[: self._inside], more[self._inside :]
        if logp.shape != (1, 1, 1) or hidden.shape[:-1] != (1, 1) or hidden.dim() != 3:
            raise ValueError("it returns other shapes than a bundle's program")
        # One position is kept, behind a prefix of one token: they are alike.
        taken = [values[f"prefix_{number}"].shape for number in range(len(own))]
        if [each.shape for each in own] != taken:
            raise ValueError("it returns other keys and values than it takes")
        width, states = self.adapter_shape
        wanted = [states // width, *[width] * (self._inside - 1)]
        if inside and [tuple(each.shape) for each in inside] != [(1, 1, size) for size in wanted]:
            raise ValueError("it returns other states of blocks than terms are learned from")
        if {each.dtype for each in (logp, hidden, *more)} != {torch.float32}:
            raise ValueError("it returns other numbers than float32")
        return int(hidden.shape[2])

    def _given(
        self,
        argument: Any,
        values: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor],
        device: torch.device | None = None,
    ) -> Any:
        if isinstance(argument, _Value):
            found = values.get(argument.name)
            return weights[argument.name] if found is None else found
        if isinstance(argument, list):
            return [self._given(each, values, weights, device) for each in argument]
        if isinstance(argument, dict):
            return {
                name: self._given(each, values, weights, device) for name, each in argument.items()
            }
        if isinstance(argument, _Device):
            return device or self.device
        return argument

    def _read(self, items: list[list[Any]]) -> list[_Node]:
        known = {*self._takes, *self._weights}
        if len(known) < len(self._takes) + len(self._weights):
            raise ValueError("a tensor is named as an input is")
        nodes: list[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        made: dict[str, str] = {}
        for name, target, args, *rest in items:
            function = self._function(target)
            read = [self._argument(each) for each in args]
            kwargs = {key: self._argument(each) for key, each in (rest[0] if rest else {}).items()}
            unknown = [each for each in _values([read, *kwargs.values()]) if each not in known]
            if unknown:
                raise ValueError(f"{name} takes {unknown[0]}, which nothing gives")
            if name in known or not isinstance(name, str):
                raise ValueError(f"{name!r:.80} is given twice, or no name")
            if function is _add_product:
                changed = read[0] if read else None
                if not isinstance(changed, _Value) or made.get(changed.name) not in _MAKES_NEW:
                    raise ValueError(f"{name} would change what it must not")
            known.add(name)
            made[name] = target
            nodes.append((name, function, tuple(read), kwargs))
        count = 2 + self._inside + sum(name.startswith("prefix_") for name in self._takes)
        if len(self._outputs) != count or not made.keys() >= {*self._outputs}:
            raise ValueError(f"an output is given by nothing, or there are not {count}")
        _check_sole_readers(nodes, self._outputs)
        seen = {*self._outputs, *self._weights}
        found: list[_Node] = []
        for name, function, given, kwargs in reversed(nodes):
            taken = [name, *_values([list(given), *kwargs.values()])]
            last = tuple(dict.fromkeys(each for each in taken if each not in seen))
            seen.update(last)
            weights = tuple(each for each in taken if each in self._weights)
            found.append(_Node(name, function, given, kwargs, last, weights))
        return found[::-1]

    def _function(self, target: str) -> Callable[..., Any]:
        own = {INT4_LINEAR: self._int4_linear, ADD_PRODUCT: _add_product}
        if target in own:
            return own[target]
        if not may_name(target):
            raise EngineError(
                f"{self._shown}: names the operator {target!r:.80}, which no export uses; do not "
                "use it, or update seedtune"
            )
        return operator_of(target)

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
                return _Device()
            case "float":
                return float(value)
            case "dtype":
                return DTYPES[value]
            case "memory_format":
                return memory_format(value)
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


def _values(arguments: Any) -> Iterator[str]:
    if isinstance(arguments, _Value):
        yield arguments.name
    elif isinstance(arguments, list):
        for each in arguments:
            yield from _values(each)


def _add_product(value: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``value + a @ b`` in place, float32 ``[P, M, out]``."""
    return value.baddbmm_(a, b)


def _int4_linear_sizes(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """A result as that of ``_int4_linear``, without numbers."""
    out, groups, half = packed.shape
    fits = half == GROUP // 2 and x.shape[-1] == groups * GROUP and scales.shape == (out, groups)
    if not fits or packed.dtype is not torch.uint8 or x.dtype is not torch.float32:
        raise ValueError("an int4 matrix does not fit what it is multiplied by")
    return x.new_empty((*x.shape[:-1], out))


def _more_inputs(
    cache: Sequence[tuple[int, int]], terms: Sequence[tuple[int, int]]
) -> dict[str, _Shape]:
    """What a program takes besides where it takes terms and reads a prefix."""
    blocks = [
        ("float32", (None, heads, *shape))
        for heads, width in cache
        for shape in ((width, None), (None, width))
    ]
    found: dict[str, _Shape] = {"kept": ("int64", (None,))} if cache else {}
    found |= {f"term_{number}": ("float32", tuple(each)) for number, each in enumerate(terms)}
    return found | {f"prefix_{number}": each for number, each in enumerate(blocks)}


def _read_inputs(items: list[Any], takes: Mapping[str, _Shape]) -> tuple[int, tuple[int, int]]:
    """K of the values and ``(D, S)`` of the adapter that a program takes."""
    sizes: dict[str, int] = {}
    if [name for name, _, _ in items] != [*takes]:
        raise ValueError(f"it takes other inputs than {', '.join(takes):.300}")
    for name, dtype, shape in items:
        wanted_dtype, wanted = takes[name]
        if dtype != wanted_dtype or len(shape) != len(wanted):
            raise ValueError(f"it takes {name} as {dtype!r:.40} {shape!r:.40}")
        for size, each in zip(shape, wanted, strict=True):
            fits = size == each
            if isinstance(each, str):
                fits = 1 <= size < 1 << 31
                sizes[each] = size
            if not fits:
                raise ValueError(f"it takes {name} of shape {shape!r:.40}")
    return sizes["K"], (sizes["D"], sizes["S"])


def _check_sole_readers(nodes: list[Any], outputs: list[str]) -> None:
    """Refuse a product that is added in place to a value which something else reads, too."""
    readers = Counter(outputs)
    for _, _, args, kwargs in nodes:
        readers.update(_values([list(args), *kwargs.values()]))
    for name, function, args, _ in nodes:
        if function is _add_product and readers[args[0].name] != 1:
            raise ValueError(f"{name} would change what others read")
