"""``python -m rehearsal.pictures BUNDLE FOLDER``: draws the app's screens as a real run left them.

The app's Python and its Kotlin without Android learn from 64 messages of the SMS Spam Collection
on ExecuTorch's Android library; the views are filled with what comes of it, as ``MainActivity`` and
``TaskActivity`` fill them. Needs Debian's ``fonts-roboto-unhinted``.
"""

import hashlib
import json
import sys
import tempfile
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
    found = json.loads(phone.app.progress("sort"))["ok"]
    kept = json.loads(phone.app.messages())["ok"]
    answer = json.loads(phone.app.predict("sort", tried))["ok"]
    judged = [(step, metric) for step, _, metric in found["evaluations"]]
    after = next(value for step, value in judged if step == found["best"])
    shares = [f"{100 * value:.0f} %" for value in (judged[0][1], after)]
    following = next(each["text"] for each in kept["messages"] if each["label"] is None)
    off = State(enabled=False)
    filled = {
        "hint": State(text=text("sort_hint")),
        "kinds": State(text=", ".join(kept["labels"])),
        "message": State(text=following),
        "labels": State(buttons=[*kept["labels"], text("take_back")]),
        "charging": State(checked=True),
        "cool": State(checked=True),
        "share": State(progress=0.5),
        "share_text": State(text=text("share", 50)),
        **dict.fromkeys(("pause", "resume", "stop"), off),
        "line": State(text=phone.reports[-1][0]),
        "before_after": State(text=text("before_after_sort", *shares, int(found["best"]))),
        "chart": State(draw=lambda *box: chart(found["losses"], judged, *box)),
        "undo": State(text=text("undo", 0)),
        "tried": State(text=tried),
        "answer": State(
            text=text(
                "answer_sort",
                answer["before"]["answer"],
                answer["after"]["answer"],
                100 * float(answer["after"]["sure"]),
            )
        ),
    }
    return Screen(RESOURCES, "task", filled).picture(text("sort"))


def chart(
    losses: Any, judged: Any, draw: ImageDraw.ImageDraw, x: float, y: float, *size: float
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
        draw.text((x + SCALE, base), f"{100 * value:.0f} %", accent, roboto(12), "ls")


def make(bundle: Path, folder: Path) -> None:
    """Learn, then draw."""
    from seedtune.host_tools.data.datasets import sms_messages
    from seedtune.runtime.bundle import pack_bundle

    rows = [(row["text"], _KINDS[row["label"]]) for row in sms_messages()]
    by_kind = [[text for text, kind in rows if kind == one] for one in _KINDS.values()]
    given = [text for pair in zip(*by_kind, strict=False) for text in pair]
    labels, following, tried = dict(rows), by_kind[0][45], by_kind[1][41]
    with tempfile.TemporaryDirectory() as scratch:
        phone = Phone(Path(scratch) / "app")
        archive = pack_bundle(bundle, Path(scratch) / "model.seedtune")
        assert "error" not in phone.app.take_bundle(str(archive))
        phone.app.name_labels(", ".join(_KINDS.values()))
        phone.app.add_messages("\n".join([*given[:_LEARNED], following]))
        messages = json.loads(phone.app.messages())["ok"]["messages"]
        for place, each in enumerate(messages[:-1]):
            phone.app.tap(place, labels[each["text"]])
        print(phone.learn("sort", seconds=1200), file=sys.stderr)
        state = json.loads(phone.app.state())["ok"]
        mark = PngInfo()
        mark.add_text(MARK, drawn_from())
        pictures = {"main": main_screen(state), "sort": sort_screen(phone, tried)}
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
