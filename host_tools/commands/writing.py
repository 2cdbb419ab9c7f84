"""Commands that write text: generate and chat."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from seedtune.runtime.errors import DataError, SeedtuneError, warn

from .inputs import tuned_model
from .options import (
    BundleHash,
    BundlePath,
    EngineName,
    FromRun,
    FromValues,
    Json,
    MemoryLimit,
    Threads,
)
from .output import Output, printable

if TYPE_CHECKING:
    from seedtune.runtime.model import Model

MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")]
Temperature = Annotated[
    float,
    typer.Option(min=0, help="0: the likeliest token each time; 1: each as often as it is likely."),
]
TopP = Annotated[
    float, typer.Option(help="Draw from the likeliest tokens that have this probability together.")
]
Seed = Annotated[int, typer.Option(help="Seed of the draws: the same seed, the same text.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="End the answer before this text; repeatable.")
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        help="Subtracted from tokens that would repeat the answer so far; 0 for none.",
        show_default="1 where writing was learned from texts, otherwise 0",
    ),
]
_HELP = """/tuned     switch between tuned and original values
/undo N    take the last N questions with their answers back (default 1)
/quit      leave (also Ctrl-D); Ctrl-C stops an answer"""


def generate(
    bundle: BundlePath,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text to continue; - reads stdin, whose last line break is left out.",
        ),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of messages (role, content) to answer."),
    ] = None,
    run: FromRun = None,
    values: FromValues = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    repetition_penalty: RepetitionPenalty = None,
    memory_limit: MemoryLimit = None,
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Write how a text or a conversation goes on, tuned or as exported.

    Ctrl-C ends the text (exit code 130).
    """
    began = time.monotonic()
    output = Output(json)
    if (prompt is None) == (messages is None):
        raise DataError(
            "give a text with --prompt TEXT (- reads stdin) or messages with --messages FILE"
        )
    asked: Any = _messages(messages) if messages is not None else prompt
    if prompt == "-":
        asked = _stdin().read().removesuffix("\n")  # 'echo' adds it; nobody means to go on from it
    with tuned_model(
        bundle,
        output,
        run,
        values,
        memory_limit=memory_limit,
        engine=engine,
        threads=threads,
        sha256=sha256,
    ) as (model, origin):
        writing = model.generate(
            asked,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=_as_typed(stop),
            repetition_penalty=repetition_penalty,
        )
        text, first = "", None
        with _interrupts() as stopped:
            for piece in writing:
                first = first or time.monotonic()
                text += piece
                if not json:
                    _show(piece)
                if stopped:
                    break
        last = time.monotonic()
    if not json:
        print()
    else:
        later = len(writing.tokens) - 1
        output.result(
            {
                "text": text,
                "tokens": len(writing.tokens),
                "ended": "interrupted" if stopped else writing.ended,
                "values": origin,
                "first_seconds": (first or last) - began,
                "tokens_per_second": later / (last - first) if first and later > 0 else None,
            }
        )
    if stopped:
        raise typer.Exit(130)


def chat(
    bundle: BundlePath,
    run: FromRun = None,
    values: FromValues = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message to begin with.")
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    stop: Stop = None,
    repetition_penalty: RepetitionPenalty = None,
    memory_limit: MemoryLimit = None,
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
) -> None:
    """Talk with a bundle in the terminal; /help names what else can be said."""
    from seedtune.runtime.writing import Manner

    output = Output(False)
    manner = Manner(max_tokens, temperature, top_p, seed, _as_typed(stop), repetition_penalty)
    with tuned_model(
        bundle,
        output,
        run,
        values,
        memory_limit=memory_limit,
        engine=engine,
        threads=threads,
        sha256=sha256,
    ) as (model, origin):
        conversation = _Conversation(model, manner, system)
        conversation.check()
        tuned = model.values
        output.note(f"{origin}; /help for help")
        terminal = _stdin().isatty()
        while (said := _asked(terminal)) is not None:
            command, _, rest = said.partition(" ")
            if command == "/quit":
                break
            if command == "/help":
                output.note(_HELP)
            elif command == "/undo":
                output.note(conversation.undo(rest))
            elif command == "/tuned":
                if run is None and values is None:
                    output.note("nothing tuned was given: --run RUN or --values FILE")
                    continue
                if model.values is tuned:
                    model.reset()
                else:
                    model.values = tuned
                conversation.begin_again()
                output.note("tuned values" if model.values is tuned else "original values")
            elif command.startswith("/"):
                output.note(f"{command} is unknown; /help names what is known")
            elif said.strip():
                _answer(conversation, said, output)


def _answer(conversation: _Conversation, said: str, output: Output) -> None:
    begun = False
    try:
        with _interrupts() as stopped:
            for piece in conversation.answer(said, stopped):
                begun = True
                _show(piece)
    except SeedtuneError as error:  # such as too long a question; the conversation is still there
        if begun:
            print()
        output.note(f"error: {error}")
        return
    print()
    if conversation.dropped:
        output.note("the oldest messages no longer fit and were left out")


class _Conversation:
    """Messages and answers so far."""

    def __init__(self, model: Model, manner: Any, system: str | None) -> None:
        self._model, self._manner = model, manner
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self._messages: list[dict[str, str]] = []
        self._writer: Any = None
        self.dropped = False
        """Whether the last answer did not see the oldest messages."""

    def check(self) -> None:
        """Refuse a bundle that cannot chat before anything is typed."""
        self._model.prompt_tokens([*self._system, {"role": "user", "content": "?"}])
        self.begin_again()

    def begin_again(self) -> None:
        """Read what was said anew, with the values now in use."""
        self._writer = self._model.writer()

    def undo(self, count: str) -> str:
        pairs = len(self._messages) // 2
        wanted = re.fullmatch(r"\d{0,9}", count.strip())
        if wanted is None:
            return f"/undo {count.strip()[:20]}: give the number of questions to take back"
        taken = min(int(wanted[0] or 1), pairs)
        del self._messages[2 * (pairs - taken) :]
        return f"{taken} of {pairs} questions taken back"

    def answer(self, said: str, stopped: list[int]) -> Iterator[str]:
        """Pieces of the answer; it joins the conversation as far as it was written."""
        from dataclasses import replace

        asked = [*self._messages, {"role": "user", "content": said}]
        tokens, self.dropped = self._fitting(asked)
        manner = replace(self._manner, seed=self._manner.seed + len(self._messages) // 2)
        text = ""
        for piece in self._writer.write(tokens, manner):
            text += piece
            yield piece
            if stopped:
                break
        self._messages = [*asked, {"role": "assistant", "content": text}]

    def _fitting(self, asked: list[dict[str, str]]) -> tuple[list[int], bool]:
        """Tokens of the latest messages that leave room for the answer."""
        # Whoever allows answers as long as all that fits does not mean to be forgotten at once.
        room = self._writer.bound - min(self._manner.max_tokens, self._writer.bound // 2)
        for first in range(0, len(asked), 2):
            tokens = self._model.prompt_tokens([*self._system, *asked[first:]])
            if len(tokens) <= room:
                return tokens, first > 0
        return tokens, len(asked) > 1  # the last alone: the writer says what it lacks


def _asked(terminal: bool) -> str | None:
    """The next line that is typed; None at the end."""
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # edits the line, and puts the terminal back
    while True:
        try:
            return input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return None
        except KeyboardInterrupt:
            print()


def _stdin() -> TextIO:
    """Before the first read: bytes that are no text become half characters, which the prompt's
    checks name."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def _as_typed(stop: list[str] | None) -> tuple[str, ...]:
    """What ``--stop`` gave; shells hand ``"\\n"`` on as two characters."""
    for text in stop or ():
        if "\\n" in text:
            warn(
                f"--stop {text}: a backslash and an n are no line break; in bash and zsh type "
                "$'\\n' for one"
            )
    return tuple(stop or ())


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C fills the list, once, so that no pass is cut in the middle; twice it interrupts."""
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _show(piece: str) -> None:
    if sys.stdout.isatty():
        piece = "".join(each if each in "\n\t" else printable(each) for each in piece)
    print(piece, end="", flush=True)


def _messages(file: Path) -> Any:
    from seedtune.runtime.tasks.row_formats import strict_json

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    found = strict_json(text, str(file))
    return found["messages"] if isinstance(found, dict) and "messages" in found else found
