"""The README's pictures: of the layouts as they are, and nothing in them that is not drawn."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from jvm_scripts import DEMO
from PIL import Image
from rehearsal import drawing, pictures
from rehearsal.drawing import Screen, State

needs_font = pytest.mark.skipif(
    not drawing.FONT.exists(), reason="apt-get install fonts-roboto-unhinted"
)


def test_the_pictures_are_of_the_layouts_as_they_are() -> None:
    """Else: ``cd android_demo && python -m rehearsal.pictures BUNDLE pictures``."""
    files = sorted((DEMO / "pictures").glob("*.png"))
    assert [file.stem for file in files] == ["main", "sort", "write"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.info[pictures.MARK] == pictures.drawn_from(), file.name
        assert f"pictures/{file.name}" in (DEMO / "README.md").read_text()


@needs_font
def test_all_views_are_drawn_in_their_order_with_their_texts() -> None:
    root = ElementTree.parse(pictures.RESOURCES / "layout/task.xml").getroot()
    groups = ("ScrollView", "LinearLayout", "HorizontalScrollView")
    wanted = [each.tag for each in root.iter() if each.tag not in groups]
    filled = {"chart": State(draw=lambda *box: None), "answer": State(text="one\ntwo")}
    screen = Screen(pictures.RESOURCES, "task", filled)
    picture = screen.picture("title")
    assert [kind for kind, _ in screen.shown] == wanted
    assert picture.width == drawing.WIDTH * drawing.SCALE
    said = [text for _, text in screen.shown]
    assert "Only while charging" in said and said[-1] == "one\ntwo"
    hidden = Screen(pictures.RESOURCES, "task", filled | {"kinds": State(visible=False)})
    assert hidden.picture("title").height < picture.height


@needs_font
def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    (tmp_path / "values").mkdir()
    (tmp_path / "layout").mkdir()
    (tmp_path / "values/strings.xml").write_text("<resources />")
    space = 'xmlns:android="http://schemas.android.com/apk/res/android"'
    for layout in (f'<TextView {space} android:rotation="9" />', f"<VideoView {space} />"):
        (tmp_path / "layout/x.xml").write_text(layout)
        with pytest.raises(drawing.Undrawable):
            Screen(tmp_path, "x", {}).picture("")
