"""Options that several commands share, with one name, one help text and one default each."""

from pathlib import Path
from typing import Annotated

import typer


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g} must lie above 0 and not above 1 (0.001 means 0.1 %)")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
BundlePath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", help="Bundle folder or .seedtune file, here or on the hub (hf://...)."
    ),
]
BundleHash = Annotated[
    str | None,
    typer.Option(
        "--sha256",
        metavar="HASH",
        help="Refuse any other bundle than the one with this hash, as 'inspect' shows it.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
JournalPath = Annotated[Path, typer.Argument(metavar="JOURNAL", help="Run folder or journal file.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face folder, GGUF file, folder of a peft adapter, a model on the hub "
        "(owner/name, hf://owner/name@revision), or a name that 'fetch' knows.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="If MODEL is an adapter of peft: the model below it. Default: the one that it names.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME|FILE",
        help="Named task, which brings its own data, or a JSON file with a task specification. "
        "Default: the bundle's own.",
    ),
]
OnLong = Annotated[
    str,
    typer.Option(
        "--on-long",
        metavar="error|truncate",
        help="What to do with a text that exceeds the program's length bound.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="CPU threads. Default: the count that is fastest here, measured."
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Runs the program: executorch-native, executorch-binding (needs torch), "
        "executorch-java (inside an Android app), onnxruntime, torch-int4; a device may follow, as "
        "in torch-int4:cuda. Default: the first that works here; 'inspect' shows them.",
    ),
]
Rounding = Annotated[
    str,
    typer.Option(
        metavar="gptq|nearest",
        help="How weights become int4: with calibration text, or each by itself.",
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        metavar="SIZE",
        help="What this process may hold, '300MB' or '1.5GB': passes and texts are cut to fit. "
        "Default: what the machine has left.",
    ),
]
FromRun = Annotated[
    Path | None, typer.Option("--run", help="Use the best values of this run folder.")
]
FromValues = Annotated[
    Path | None, typer.Option("--values", help="Use the values of this exported file.")
]
Fraction = Annotated[
    float,
    typer.Option("--fraction", callback=_share, help="Share of the weights that are sensitive."),
]
MaskName = Annotated[
    str,
    typer.Option(
        "--mask",
        metavar="NAME",
        help="compact, global, per-layer, random, magnitude or module:function.",
    ),
]
