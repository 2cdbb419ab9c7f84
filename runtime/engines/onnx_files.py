"""Which files an ONNX program takes its tensors from, and sizes that it declares, read before the
library sees it.

A program may name any file of the machine, or a place in memory. Protobuf's wire format is walked
by hand: a device has no ``onnx`` package, and the walk is strict where the library may be lenient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_MOST_DEEP = 64
"""Messages inside messages; a program of ours has 4."""


@dataclass
class _Message:
    """Numbers of the fields that hold messages in which a tensor may lie, and what these are."""

    fields: dict[int, "_Message"] = field(default_factory=dict)


_TENSOR = _Message()
_SPARSE = _Message({1: _TENSOR, 2: _TENSOR})
_ATTRIBUTE, _GRAPH = _Message({5: _TENSOR, 10: _TENSOR, 22: _SPARSE, 23: _SPARSE}), _Message()
_NODE = _Message({5: _ATTRIBUTE})
_GRAPH.fields.update({1: _NODE, 5: _TENSOR, 15: _SPARSE})
_ATTRIBUTE.fields.update({6: _GRAPH, 11: _GRAPH})
_FUNCTION, _TRAINING = _Message({7: _NODE, 11: _ATTRIBUTE}), _Message({1: _GRAPH, 2: _GRAPH})
_MODEL = _Message({7: _GRAPH, 20: _TRAINING, 25: _FUNCTION})
_TO_SHAPES = ((7,), (11, 12), (2,), (1,), (2,))
"""Fields from a model to the shapes in it: graph, inputs or results, type, tensor type, shape."""
_EXTERNAL_DATA = 13
"""A tensor's field: pairs of a key (field 1) and a value (field 2)."""


def tensor_files(program: bytes) -> set[str]:
    """What the tensors of a model name as their files, whatever it is.

    Raises:
        ValueError: not protobuf, or too deep.
    """
    return set(_files(memoryview(program), _MODEL, 0))


def _files(data: memoryview, message: _Message, depth: int) -> Iterator[str]:
    if depth > _MOST_DEEP:
        raise ValueError(f"more than {_MOST_DEEP} messages inside each other")
    for number, content in _fields(data):
        if number in message.fields:
            yield from _files(content, message.fields[number], depth + 1)
        elif message is _TENSOR and number == _EXTERNAL_DATA:
            pair = list(_fields(content))
            # The last of several keys counts, or the first: each reader may have its own way.
            if any(which == 1 and bytes(key) == b"location" for which, key in pair):
                yield from (bytes(each).decode() for which, each in pair if which == 2)


def largest_size(program: bytes, *, axes: int) -> int:
    """The largest size that a model's graph declares for an axis of its inputs or results of one
    axis (``axes`` 1) or of more (2); 0 without any. The library computes with such sizes while it
    opens a model.

    Raises:
        ValueError: not protobuf.
    """
    shapes = [list(_sizes(each)) for each in _inside(memoryview(program), _TO_SHAPES)]
    return max((max(shape, default=0) for shape in shapes if min(len(shape), 2) == axes), default=0)


def _inside(data: memoryview, path: Sequence[Sequence[int]]) -> Iterator[memoryview]:
    """Messages that fields of these numbers lead to, one behind the other."""
    if not path:
        yield data
        return
    for number, content in _fields(data):
        if number in path[0]:
            yield from _inside(content, path[1:])


def _sizes(shape: memoryview) -> Iterator[int]:
    """Of each axis of a shape; 0 where it may vary."""
    for axis in _inside(shape, ((1,),)):
        numbers = [value for which, value in _all_fields(axis) if which == 1]
        yield max((each for each in numbers if isinstance(each, int)), default=0)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; numbers and the like are left out."""
    for number, content in _all_fields(data):
        if not isinstance(content, int):
            yield number, content


def _all_fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The same with numbers of variable length."""
    place = 0
    while place < len(data):
        tag, place = _number(data, place)
        kind = tag & 7
        if kind == 2:
            size, place = _number(data, place)
            if size > len(data) - place:
                raise ValueError("a field ends behind its message")
            yield tag >> 3, data[place : place + size]
            place += size
        elif kind == 0:
            value, place = _number(data, place)
            yield tag >> 3, value
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _number(data: memoryview, place: int) -> tuple[int, int]:
    """A number of at most ten bytes, and the place behind it."""
    found = 0
    for count, byte in enumerate(data[place : place + 10]):
        found |= (byte & 127) << 7 * count
        if byte < 128:
            return found, place + count + 1
    raise ValueError("a number without an end")
