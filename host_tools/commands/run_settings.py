"""Flags for the settings of a run, made of what these say of themselves when they are asked for.

``seedtune --help`` shows none of them, so that it need not load the estimators.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand

if TYPE_CHECKING:
    from seedtune.runtime.settings import Option

ESTIMATORS_OWN = "Options of the estimators"


class WithSettings(TyperCommand):
    """A command with a flag for each setting of a run and each option of an estimator.

    It finds those that were given in ``ctx.obj``, by name.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        *own, help_flag = super().get_params(ctx)
        return [*own, *_flags(), help_flag]

    def invoke(self, ctx: Any) -> Any:
        texts = {flag.name: ctx.params.pop(flag.name) for flag in _flags()}
        ctx.obj = {
            name: value if isinstance(value, bool) else _most_open(_known()[name]).parse(value)
            for name, value in texts.items()
            if value is not None
        }
        return super().invoke(ctx)


def _known() -> dict[str, list[tuple[str, Option]]]:
    """Each setting by name, with the estimators that have it (all: an empty name)."""
    from seedtune.runtime.estimators import ESTIMATORS
    from seedtune.runtime.settings import Settings, options_of

    found = {name: [("", one)] for name, one in options_of(Settings).items()}
    for spec in ESTIMATORS.values():
        for name, one in options_of(spec.options).items():
            found.setdefault(name, []).append((spec.name, one))
    return found


def _most_open(known: list[tuple[str, Option]]) -> Option:
    """The option with the most words, of those of one name: it takes what any of them takes."""
    return max((one for _, one in known), key=lambda one: len(one.words))


def _flags() -> list[Any]:
    """The flags, as the parameters of a command."""

    def command(**given: Any) -> None: ...

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, known),
        )
        for name, known in _known().items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    made = typer.main.get_command(app).params
    return [one for one in made if one.name in command.__annotations__]


def _annotation(name: str, known: list[tuple[str, Option]]) -> Any:
    one, flag = _most_open(known), f"--{name.replace('_', '-')}"
    how: dict[str, Any] = {"rich_help_panel": ESTIMATORS_OWN if known[0][0] else "Settings"}
    if one.kind is bool:
        names = f"{flag}/--no-{name.replace('_', '-')}"
        return Annotated[bool | None, typer.Option(names, help=_help(name, known), **how)]
    kinds = {int: "NUMBER", float: "NUMBER", str: "NAME"}
    metavar = "|".join((*([] if one.words and one.kind is str else [kinds[one.kind]]), *one.words))
    return Annotated[
        str | None, typer.Option(flag, metavar=metavar, help=_help(name, known), **how)
    ]


def _help(name: str, known: list[tuple[str, Option]]) -> str:
    """What the setting is, who has it, and its default there."""
    from seedtune.runtime.estimators import ESTIMATORS

    if name == "estimator":
        each = "; ".join(f"{spec.name}: {spec.summary}" for spec in ESTIMATORS.values())
        return f"{known[0][1].help} {each}."
    if not known[0][0]:
        return f"{known[0][1].help} Default: {_default(name, known[0][1])}."
    texts: dict[str, list[str]] = {}
    for estimator, one in known:
        shown = "" if one.default is None else f" ({said(one.default)})"
        texts.setdefault(one.help, []).append(estimator + shown)
    return " ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())


def _default(name: str, one: Option) -> str:
    from seedtune.runtime.estimators import ESTIMATORS

    if one.default is not None:
        return said(one.default)
    own = {spec.name: getattr(spec, name) for spec in ESTIMATORS.values()}
    return ", ".join(f"{who} {'one pass' if its is None else its}" for who, its in own.items())


def said(value: Any) -> str:
    """A setting's value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def given_settings(ctx: typer.Context) -> Mapping[str, Any]:
    """What ``WithSettings`` found."""
    found: Mapping[str, Any] = ctx.obj
    return found
