"""The command ``seedtune``. Each group of commands is one module under ``commands``.

Errors that a user can mend are one line on stderr and leave with the error's own exit code (see
``seedtune.runtime.errors``); wrong usage leaves with 2. Warnings are one line there, too.
With ``--json`` a command prints exactly one JSON object on stdout; progress goes to stderr. Modules
that load models are imported inside the commands, so that ``seedtune --help`` answers at once.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, TextIO

from seedtune.runtime.errors import SeedtuneError, SeedtuneWarning

try:
    import typer
    from typer.core import TyperGroup
except ImportError:
    raise SystemExit(
        "error: the command line needs its extra: pip install 'seedtune[cli]'"
    ) from None

from .commands import (
    bench,
    bundle,
    emulate,
    estimate,
    evaluate,
    export,
    fetch,
    journal,
    merge,
    profile,
    push,
    quickstart,
    report,
    serve,
    tune,
    writing,
)
from .commands.output import printable
from .commands.run_settings import WithSettings


class _Group(TyperGroup):
    """Turns errors that a user can mend into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _warnings_as_lines():
                return super().invoke(ctx)
        except SeedtuneError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except ModuleNotFoundError as error:
            package = (error.name or "seedtune").partition(".")[0]
            if package == "seedtune":
                raise
            print(
                f"error: this needs {package}, which is not installed here; "
                "it comes with: pip install 'seedtune[host]'",
                file=sys.stderr,
            )
            raise typer.Exit(1) from error


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Shows what may spoil a result as one line on stderr, each once a command."""
    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", SeedtuneWarning)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, SeedtuneWarning):
                usual(message, category, filename, lineno, file, line)
            elif str(message) not in told:
                told.add(str(message))
                print(f"warning: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield


app = typer.Typer(
    cls=_Group,
    help="Fine-tune a language model on the device that runs it, with forward passes only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # what escapes is a defect; its plain traceback helps most
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from .this_machine import versions

        for name, version in versions("seedtune", "torch", "executorch", "onnxruntime").items():
            print(name, version or "not installed")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit."),
    ] = False,
) -> None:
    """Options of no command."""


app.command()(quickstart.quickstart)
app.command()(fetch.fetch)
app.command()(profile.profile)
app.command()(export.export)
app.command()(bundle.inspect)
app.command()(bundle.pack)
app.command()(estimate.estimate)
app.command(cls=WithSettings)(tune.tune)
app.command()(evaluate.evaluate)
app.command()(evaluate.predict)
app.command()(report.report)
app.command()(merge.merge)
app.command()(push.push)
app.command()(writing.generate)
app.command()(writing.chat)
app.command()(serve.serve)
app.command()(bench.bench)
app.command()(emulate.emulate)
app.add_typer(journal.app, name="journal")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
