"""Draws a layout of the app as Android lays it out: for people who read about it, not a screenshot.

The layout file, strings and colours are the app's own. How a button or a line of text looks is
read off the framework's light theme of API 33 (AOSP, nobody's phone): sizes, colours and insets
below. What this cannot draw, it refuses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

_NAME = "{http://schemas.android.com/apk/res/android}"
FONT = Path("/usr/share/fonts/truetype/roboto/unhinted/RobotoTTF/Roboto-Medium.ttf")
SCALE = 2
"""Pixels a dp."""
WIDTH = 360
"""dp of a common phone."""
_BAR = 56
_BACKGROUND, _TEXT, _SOFT, _BUTTON = "#f0f0f3", "#212121", "#6e6e6e", "#d6d7d7"
_DIM, _LINE, _SYSTEM_ACCENT = "#aaaaaa", "#8a8a8a", "#00668b"
_IGNORED = {
    "fitsSystemWindows", "inputType", "maxLines", "importantForAutofill", "textIsSelectable",
    "accessibilityLiveRegion", "contentDescription", "freezesText", "labelFor", "max", "maxLength",
}  # fmt: skip
"""Attributes that do not show in a picture of a screen at rest."""
_KNOWN = {
    "id", "layout_width", "layout_height", "layout_weight", "layout_marginTop", "minHeight",
    "orientation", "padding", "paddingTop", "paddingBottom", "text", "textAppearance", "hint",
}  # fmt: skip


@dataclass
class State:
    """What the app's code put into one view; by default what the layout says."""

    text: str | None = None
    visible: bool = True
    enabled: bool = True
    checked: bool = False
    progress: float = 0.0
    """Of a slider: 0 to 1."""
    buttons: list[str] = field(default_factory=list)
    """Added inside it."""
    draw: Callable[[ImageDraw.ImageDraw, float, float, float, float], None] | None = None
    """Of a view of the app's own: into x, y, width, height in pixels."""


def roboto(size: float) -> ImageFont.FreeTypeFont:
    """The theme's face, of ``size`` sp."""
    return ImageFont.truetype(str(FONT), round(size * SCALE))


class Undrawable(ValueError):
    """The layout has something that this cannot draw."""


class Screen:
    """One layout, its views filled."""

    def __init__(self, resources: Path, layout: str, states: Mapping[str, State]) -> None:
        self._strings = {
            each.attrib["name"]: "".join(each.itertext())
            for each in ElementTree.parse(resources / "values/strings.xml").getroot()
        }
        self._root = ElementTree.parse(resources / "layout" / f"{layout}.xml").getroot()
        self._states = states
        self.shown: list[tuple[str, str]] = []
        """Kind and text of each view drawn, from top to bottom."""

    def picture(self, title: str) -> Image.Image:
        """The whole of it, longer than a phone's screen where one would scroll."""
        height = self._height(self._root, WIDTH)
        size = (WIDTH * SCALE, round((_BAR + height) * SCALE))
        image = Image.new("RGB", size, _BACKGROUND)
        self._draw = ImageDraw.Draw(image)
        self._text(title, 16, 18, 20, _TEXT)
        self._place(self._root, 0, _BAR, WIDTH)
        return image

    # Sizes, in dp

    def _get(self, node: ElementTree.Element, name: str) -> str:
        return node.get(_NAME + name, "")

    def _dp(self, node: ElementTree.Element, name: str) -> float:
        return float(self._get(node, name).removesuffix("dp") or 0)

    def _state(self, node: ElementTree.Element) -> State:
        return self._states.get(self._get(node, "id").removeprefix("@+id/"), State())

    def _said(self, node: ElementTree.Element, name: str = "text") -> str:
        given = self._state(node).text if name == "text" else None
        written = self._get(node, name)
        if given is not None or not written.startswith("@string/"):
            return written if given is None else given
        return self._strings[written.removeprefix("@string/")]

    def _padding(self, node: ElementTree.Element) -> tuple[float, float]:
        both = self._dp(node, "padding")
        return (self._dp(node, "paddingTop") or both, self._dp(node, "paddingBottom") or both)

    def _children(self, node: ElementTree.Element) -> list[ElementTree.Element]:
        made = []
        for text in self._state(node).buttons:
            button = ElementTree.Element("Button")
            button.set(_NAME + "text", text)
            made.append(button)
        return [each for each in [*node, *made] if self._state(each).visible]

    def _height(self, node: ElementTree.Element, width: float) -> float:
        """With margins."""
        unknown = {each.removeprefix(_NAME) for each in node.attrib} - _KNOWN - _IGNORED
        if unknown:
            raise Undrawable(f"{node.tag}: attributes {sorted(unknown)}")
        return self._dp(node, "layout_marginTop") + self._inner(node, width)

    def _inner(self, node: ElementTree.Element, width: float) -> float:
        top, bottom = self._padding(node)
        match node.tag:
            case "ScrollView" | "HorizontalScrollView":
                return sum(self._height(each, width) for each in self._children(node))
            case "LinearLayout":
                inside = width - 2 * self._dp(node, "padding")
                children = self._children(node)
                if self._get(node, "orientation") == "vertical":
                    return top + bottom + sum(self._height(each, inside) for each in children)
                return max((self._height(each, inside) for each in children), default=0)
            case "TextView":
                return top + bottom + max(1, len(self._lines(self._said(node), 18, width))) * 21 + 4
            case "EditText":
                shown = self._said(node) or self._said(node, "hint")
                return 25 + 21 * max(1, len(self._lines(shown, 18, width - 8)))
            case "Button":
                return 48
            case "CheckBox" | "SeekBar":
                return max(32, self._dp(node, "minHeight"))
        if "." in node.tag and self._state(node).draw is not None:
            return self._dp(node, "layout_height")
        raise Undrawable(f"a {node.tag}")

    # Pixels

    def _place(self, node: ElementTree.Element, x: float, y: float, width: float) -> None:
        y += self._dp(node, "layout_marginTop")
        height = self._inner(node, width)
        state, (top, _) = self._state(node), self._padding(node)
        said = self._said(node)
        colour = _TEXT if state.enabled else _DIM
        box = self._pixels(x, y, x + width, y + height)
        match node.tag:
            case "ScrollView" | "HorizontalScrollView":
                for each in self._children(node):
                    self._place(each, x, y, width)
                return
            case "LinearLayout":
                self._place_all(node, x, y + top, width)
                return
            case "TextView":
                for place, line in enumerate(self._lines(said, 18, width)):
                    self._text(line, x, y + top + 2 + 21 * place, 18, _SOFT)
            case "EditText":
                shown = said or self._said(node, "hint")
                for place, line in enumerate(self._lines(shown, 18, width - 8)):
                    self._text(line, x + 4, y + 11 + 21 * place, 18, _TEXT if said else _SOFT)
                under = y + height - 7
                self._draw.line(self._pixels(x + 4, under, x + width - 4, under), _LINE, SCALE)
                said = shown
            case "Button":
                inset = self._pixels(x + 4, y + 6, x + width - 4, y + height - 6)
                self._draw.rounded_rectangle(inset, 4 * SCALE, _BUTTON)
                title = self._cut(said.upper(), 14, width - 16)
                self._text(title, x + width / 2, y + height / 2, 14, colour, "mm")
            case "CheckBox":
                y += (height - 32) / 2
                mark = self._pixels(x + 7, y + 7, x + 25, y + 25)
                fill = _SYSTEM_ACCENT if state.checked else None
                self._draw.rounded_rectangle(mark, 2 * SCALE, fill, _LINE, 0 if fill else SCALE * 2)
                if state.checked:
                    tick = [(11, 16), (15, 20), (22, 12)]
                    line = [((x + a) * SCALE, (y + b) * SCALE) for a, b in tick]
                    self._draw.line(line, "white", 2 * SCALE)
                self._text(said, x + 32, y + 16, 14, _TEXT, "lm")
            case "SeekBar":
                left, right, middle = x + 16, x + width - 16, y + height / 2
                at = left + (right - left) * state.progress
                self._draw.line(self._pixels(left, middle, right, middle), _DIM, SCALE * 2)
                self._draw.line(self._pixels(left, middle, at, middle), _SYSTEM_ACCENT, SCALE * 2)
                dot = self._pixels(at - 6, middle - 6, at + 6, middle + 6)
                self._draw.ellipse(dot, _SYSTEM_ACCENT)
            case _:
                assert state.draw is not None
                state.draw(self._draw, box[0], box[1], box[2] - box[0], box[3] - box[1])
        self.shown.append((node.tag, said))

    def _place_all(self, node: ElementTree.Element, x: float, y: float, width: float) -> None:
        children, padding = self._children(node), self._dp(node, "padding")
        x, width = x + padding, width - 2 * padding
        if self._get(node, "orientation") == "vertical":
            for each in children:
                self._place(each, x, y, width)
                y += self._height(each, width)
            return
        weights = [self._dp(each, "layout_weight") for each in children]
        for each, weight in zip(children, weights, strict=True):
            text = self._get(each, "text")
            own = max(88, roboto(14).getlength(text.upper()) / SCALE + 24)
            wide = width * weight / sum(weights) if sum(weights) else own
            self._place(each, x, y, wide)
            x += wide

    def _pixels(self, *places: float) -> list[float]:
        return [each * SCALE for each in places]

    def _text(
        self, text: str, x: float, y: float, size: float, colour: str, anchor: str = "la"
    ) -> None:
        self._draw.text((x * SCALE, y * SCALE), text, colour, roboto(size), anchor)

    def _lines(self, text: str, size: float, width: float) -> list[str]:
        """Broken at blanks."""
        font, lines = roboto(size), []
        for paragraph in text.split("\n") if text else []:
            line = ""
            for word in paragraph.split(" "):
                longer = f"{line} {word}" if line else word
                if line and font.getlength(longer) > width * SCALE:
                    lines.append(line)
                    longer = word
                line = longer
            lines.append(line)
        return lines

    def _cut(self, text: str, size: float, width: float) -> str:
        while text and roboto(size).getlength(text) > width * SCALE:
            text = text[:-1]
        return text
