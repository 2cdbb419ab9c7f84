"""Jinja templates, rendered as transformers renders them (``chat_template_utils``): sandboxed,
blocks trimmed, and bounded in what they make.

Rendering a chat template once at export into plain pieces would do for few: many look at the first
message, strip texts or refuse an order of roles. jinja2 takes 8 MB, and only where a conversation
is rendered.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from itertools import chain
from types import BuiltinMethodType, GeneratorType
from typing import Any

from ..errors import DataError
from .field_checks import LONGEST

_LARGEST_BITS = 1 << 14
_MOST_WORK = 1 << 26
"""Sizes of the arguments multiplied, of a function that may make a text as long as that."""
_BOUNDED = "a list or the like"
"""Filter that gives what it is given, if that is not too large."""
_GROWING = frozenset(
    ("batch", "center", "format", "indent", "join", "pprint", "replace", "round", "slice", "tojson",
     "truncate", "wordwrap")
)  # fmt: skip
"""Filters whose result may be longer than what they are given."""


def pattern(texts: Collection[str]) -> re.Pattern[str]:
    """Finds any of ``texts``, the longest first, since one may begin with another."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def named_in(texts: Collection[str], text: str) -> set[str]:
    """Those of ``texts`` that stand in ``text``."""
    return set(pattern(texts).findall(text)) if texts else set()


def replaced(text: str, others: Mapping[str, str]) -> str:
    """``text`` with other texts in place of those that ``others`` names."""
    return pattern(others).sub(lambda match: others[match[0]], text) if others else text


def constants(source: str, special_tokens: Mapping[str, str]) -> list[str]:
    """All text that a template holds or may name."""
    from jinja2 import nodes

    tree = _parsed(source, _environment())
    data = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return [*data, *texts, *special_tokens.values()]


def compiled(source: str, stand_ins: Mapping[str, str]) -> Any:
    """A template that writes ``stand_ins`` in place of the texts that it holds and they name.

    Raises:
        DataError: jinja2 is not installed, or the template is none.
    """
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    class Sums(NodeTransformer):
        """Concatenations as sums, whose length the environment bounds, as that of lists."""

        def visit_Concat(self, node: Any) -> Any:  # as jinja2 calls it
            self.generic_visit(node)
            texts = [
                nodes.Filter(each, "string", [], [], None, None, lineno=node.lineno)
                for each in node.nodes
            ]
            whole: Any = texts[0]
            for text in texts[1:]:
                whole = nodes.Add(whole, text, lineno=node.lineno)
            return whole

        def visit_List(self, node: Any) -> Any:
            self.generic_visit(node)
            return nodes.Filter(node, _BOUNDED, [], [], None, None, lineno=node.lineno)

        visit_Dict = visit_List

        def visit_Tuple(self, node: Any) -> Any:
            return self.visit_List(node) if node.ctx == "load" else node

    environment = _environment()
    tree = Sums().visit(_parsed(source, environment))
    for node in tree.find_all(nodes.TemplateData):
        node.data = replaced(node.data, stand_ins)
    for node in tree.find_all(nodes.Const):
        if isinstance(node.value, str):
            node.value = replaced(node.value, stand_ins)
    tree.set_environment(environment)
    return environment.from_string(tree)


def _parsed(source: str, environment: Any) -> Any:
    # transformers marks the assistant's part with a tag of its own.
    plain = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
    plain = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", plain)
    try:
        tree = environment.parse(plain)
        environment.compile(tree)  # finds unknown filters and misplaced tags
        return environment.parse(plain)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"the bundle's chat template cannot be read: {reason}") from error


def _environment() -> Any:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise DataError(
            "chat templates need jinja2, which is not installed; pip install 'seedtune[chat]'"
        ) from error

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    class Bounded(ImmutableSandboxedEnvironment):
        """Refuses an operation whose result would be huge: it could not be interrupted."""

        intercepted_binops = frozenset(["**", "*", "+", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_size(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **named: Any) -> Any:
            method = getattr(function, "__wrapped__", function)  # jinja2 has a format of its own
            if isinstance(method, BuiltinMethodType) and isinstance(method.__self__, str):
                args = tuple(map(_listed, args))
                _check_work(method.__name__, [method.__self__, *args, *named.values()])
            return super().call(context, function, *args, **named)

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters = {
        name: _bounded(name, each)
        for name, each in {**environment.filters, "tojson": tojson, _BOUNDED: _itself}.items()
    }
    shown = _bounded("what is shown", _itself)
    environment.finalize = lambda value: value if isinstance(value, str) else shown(value)
    del environment.globals["lipsum"]  # as many words as one asks for
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses what would keep it busy, or make it take memory, without end."""

    @functools.wraps(function)  # also jinja2's marks, such as that it takes the context
    def call(*args: Any, **named: Any) -> Any:
        args = tuple(map(_listed, args))
        values = [*args, *named.values()]
        if name in _GROWING:
            _check_work(name, values)
        elif any(_size(each) > LONGEST for each in values):
            raise ValueError(f"{name} would be too large")
        return function(*args, **named)

    return call


def _itself(value: Any) -> Any:
    return value


def _check_work(name: str, values: Collection[Any]) -> None:
    work = 1
    for each in values:
        size = _width(each) if name == "format" and isinstance(each, str) else 0
        size = max(size, abs(each) if isinstance(each, int) else _size(each))
        work *= max(1, size)
        if size > LONGEST or work > _MOST_WORK:
            raise ValueError(f"the result of {name} would be too large")


def _listed(value: Any) -> Any:
    """A list of what is still to be computed, such as by ``map``: its size is to be known."""
    return list(value) if isinstance(value, GeneratorType) else value


def _width(form: str) -> int:
    """The largest number in a text that says how others are written."""
    return max(map(int, re.findall(r"\d{1,9}", form)), default=0)


def _size(value: Any) -> int:
    """Characters and items in a value, as far as ``LONGEST`` and a little more."""
    left, size = [value], 0
    while left and size <= LONGEST:
        part = left.pop()
        size += len(part) if isinstance(part, str | range) else 1
        if isinstance(part, Mapping):
            left += chain.from_iterable(part.items())
        elif isinstance(part, list | tuple | set):
            left += part
    return size


def _check_size(operator: str, left: Any, right: Any) -> None:
    bits = length = 0
    if isinstance(left, int) and isinstance(right, int):
        sizes = left.bit_length(), right.bit_length()
        bits = sizes[0] * abs(right) if operator == "**" else sum(sizes)
    elif operator == "*":
        for whole, times in ((left, right), (right, left)):
            if isinstance(whole, str | list | tuple) and isinstance(times, int):
                length = len(whole) * times
    elif operator == "%" and isinstance(left, str):
        length = max(_width(left), _size(right))
        length = LONGEST + 1 if "*" in left else length
    elif isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        length = _size(left) + _size(right)
    if bits > _LARGEST_BITS or length > LONGEST:
        raise ValueError(f"the result of {operator} would be too large")
