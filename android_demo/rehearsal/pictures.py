"""``python -m rehearsal.pictures BUNDLE FOLDER``: draws the app's screens as a real run left them.

The app's Python and its Kotlin without Android learn on ExecuTorch's Android library, from 64
messages of the SMS Spam Collection and from what one person wrote in a public chat; the views are
filled with what comes of it, as ``MainActivity`` and ``TaskActivity`` fill them. Needs Debian's
``fonts-roboto-unhinted``.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from . import jvm
from .drawing import SCALE, Screen, State, roboto
from .phone import APP, Phone

RESOURCES = APP / "res"
_KINDS = {"ham": "people", "spam": "offers"}
_LEARNED = 64
_WRITTEN = 120
"""Replies that are learned from."""
_TRIED = "I think you should"
MARK = "drawn from"
"""Name of the text in a picture that says of which layouts it is."""


def drawn_from() -> str:
    """Hash of the layouts, strings and colours."""
    key = hashlib.sha256()
    for folder in (RESOURCES / "layout", RESOURCES / "values"):
        for file in sorted(folder.iterdir()):
            key.update(file.read_bytes())
    return key.hexdigest()


def text(name: str, *given: Any) -> str:
    """One of the app's strings, filled as Android's ``getString`` does."""
    from java import jclass

    strings = ElementTree.parse(RESOURCES / "values/strings.xml").getroot()
    (found,) = [each.text for each in strings if each.attrib["name"] == name]
    java = jclass("java.lang.String")
    box = {int: jclass("java.lang.Integer"), float: jclass("java.lang.Double"), str: java}
    return str(java.format(found, [box[type(each)](each) for each in given])) if given else found


def main_screen(state: dict[str, Any]) -> Image.Image:
    bundle = state["bundle"]
    model = text("model", bundle["name"], bundle["megabytes"], bundle["sha256"][:16])
    filled = {"model": State(text=model), "line": State(text=text("checked"))}
    return Screen(RESOURCES, "main", filled).picture(text("app_name"))


def sort_screen(phone: Phone, tried: str) -> Image.Image:
    kept = json.loads(phone.app.messages())["ok"]
    answer = json.loads(phone.app.predict("sort", tried))["ok"]
    following = next(each["text"] for each in kept["messages"] if each["label"] is None)
    sure = 100 * float(answer["after"]["sure"])
    filled = {
        "kinds": State(text=", ".join(kept["labels"])),
        "message": State(text=following),
        "labels": State(buttons=[*kept["labels"], text("take_back")]),
        "tried": State(text=tried),
        "answer": State(
            text=text("answer_sort", answer["before"]["answer"], answer["after"]["answer"], sure)
        ),
    }
    return task_screen(phone, "sort", filled, lambda value: f"{100 * value:.0f} %")


def write_screen(phone: Phone, tried: str) -> Image.Image:
    answer = json.loads(phone.app.predict("write", tried))["ok"]
    words = [float(answer[when]["perplexity"]) for when in ("before", "after")]
    said = text("answer_write", *words) + "\n\n" + answer["after"].get("written", "")
    gone = dict.fromkeys(("kinds", "name_kinds", "message", "labels"), State(visible=False))
    filled = gone | {"tried": State(text=tried), "answer": State(text=said)}
    return task_screen(phone, "write", filled, lambda value: f"{value:.1f}")


def task_screen(
    phone: Phone, kind: str, filled: dict[str, State], unit: Callable[[float], str]
) -> Image.Image:
    """What both have in common."""
    found = json.loads(phone.app.progress(kind))["ok"]
    judged = found["evaluations"]
    after = next(value for step, value in judged if step == found["best"])
    shown = [unit(value) for value in (judged[0][1], after)]
    common = {
        "hint": State(text=text(f"{kind}_hint")),
        "charging": State(checked=True),
        "cool": State(checked=True),
        "share": State(progress=0.5),
        "share_text": State(text=text("share", 50)),
        **dict.fromkeys(("pause", "resume", "stop"), State(enabled=False)),
        "line": State(text=phone.reports[-1][0]),
        "before_after": State(text=text(f"before_after_{kind}", *shown, int(found["best"]))),
        "chart": State(draw=lambda *box: chart(found["losses"], judged, unit, *box)),
        "undo": State(text=text("undo", 0)),
    }
    return Screen(RESOURCES, "task", common | filled).picture(text(kind))


def chart(
    losses: Any,
    judged: Any,
    unit: Callable[[float], str],
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    *size: float,
) -> None:
    """What ``ChartView`` draws; where the points stand is said by the app's own ``Curve``."""
    from java import jclass

    def points(found: Any) -> Any:
        array = jclass("java.util.ArrayList")()
        for step, value in found:
            array.add(jclass("kotlin.Pair")(float(step), float(value)))
        return array

    def pixels(found: Any, through: Any) -> list[tuple[float, float]]:
        curve = jclass("org.seedtune.demo.Curve")(points(found), points(through))
        flat = list(curve.pixels(int(size[0]), int(size[1]), 20.0 * SCALE))
        return [(x + a, y + b) for a, b in zip(flat[::2], flat[1::2], strict=True)]

    accent = ElementTree.parse(RESOURCES / "values/colors.xml").getroot()[0].text
    draw.line(pixels(losses, losses), "#c0c0c0", SCALE)
    places = pixels(judged, [*judged, (losses[-1][0], judged[-1][1])])
    draw.line(places, accent, 3 * SCALE)
    for a, b in places:
        radius = 4 * SCALE
        draw.ellipse((a - radius, b - radius, a + radius, b + radius), accent)
    values = [value for _, value in judged]
    for value, base in ((max(values), y + 16 * SCALE), (min(values), y + size[1] - 4 * SCALE)):
        draw.text((x + SCALE, base), unit(value), accent, roboto(12), "ls")


def learn_to_sort(phone: Phone) -> str:
    """From messages of both kinds by turns; a message to try."""
    from seedtune.host_tools.data.datasets import sms_messages

    rows = [(row["text"], _KINDS[row["label"]]) for row in sms_messages()]
    by_kind = [[text for text, kind in rows if kind == one] for one in _KINDS.values()]
    given = [text for pair in zip(*by_kind, strict=False) for text in pair]
    labels, following = dict(rows), by_kind[0][45]
    phone.app.name_labels(", ".join(_KINDS.values()))
    phone.app.add_messages("\n".join([*given[:_LEARNED], following]))
    messages = json.loads(phone.app.messages())["ok"]["messages"]
    for place, each in enumerate(messages[:-1]):
        phone.app.tap(place, labels[each["text"]])
    print(phone.learn("sort", seconds=1200), file=sys.stderr)
    return by_kind[1][41]


def learn_to_write(phone: Phone) -> None:
    """From what one person wrote."""
    from seedtune.host_tools.data.datasets import chat_replies

    wrote = [row["reply"] for row in chat_replies()[:_WRITTEN]]
    print(phone.app.write("\n".join(wrote)), file=sys.stderr)
    print(phone.learn("write", seconds=1200), file=sys.stderr)


def make(bundle: Path, folder: Path) -> None:
    """Learn, then draw."""
    from seedtune.runtime.bundle import pack_bundle

    with tempfile.TemporaryDirectory() as scratch:
        phone = Phone(Path(scratch) / "app")
        archive = pack_bundle(bundle, Path(scratch) / "model.seedtune")
        assert "error" not in phone.take_bundle(archive)
        pictures = {"main": main_screen(json.loads(phone.app.state())["ok"])}
        pictures["sort"] = sort_screen(phone, learn_to_sort(phone))
        learn_to_write(phone)
        pictures["write"] = write_screen(phone, _TRIED)
        mark = PngInfo()
        mark.add_text(MARK, drawn_from())
        for name, picture in pictures.items():
            picture.quantize(64).save(folder / f"{name}.png", pnginfo=mark, optimize=True)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]), Path(sys.argv[2]))
    except BaseException:
        import traceback

        traceback.print_exc()
        jvm.leave(1)
    jvm.leave()
