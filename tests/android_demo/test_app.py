"""The app as a project: its Kotlin compiles, its parts refer to each other, it asks for little."""

import ast
import io
import re
import tokenize
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jvm_scripts import DEMO, OnJvm
from rehearsal import packaging
from rehearsal.phone import APP, KOTLIN, PURE
from rehearsal.resources import resource_class, unknown_references

ROOT = DEMO.parent
MANIFEST = APP / "AndroidManifest.xml"
ANDROID = "{http://schemas.android.com/apk/res/android}"
MISSING = packaging.missing()
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}")
ASKED = {
    "FOREGROUND_SERVICE",
    "FOREGROUND_SERVICE_SPECIAL_USE",
    "POST_NOTIFICATIONS",
    "WAKE_LOCK",
}
NEWER = {
    "android.app.Notification$Action": 19,
    "android.app.Notification$Action$Builder": 20,
    "android.app.Notification$Action$Builder.<init>": 23,
    "android.app.Notification$Action$Builder.build": 20,
    "android.app.Notification$Builder.<init>": 26,
    "android.app.Notification$Builder.addAction": 20,
    "android.app.NotificationChannel": 26,
    "android.app.NotificationChannel.<init>": 26,
    "android.app.NotificationManager.createNotificationChannel": 26,
    "android.app.Service.getSystemService": 23,
    "android.app.Service.stopForeground": 24,
    "android.content.Context.getColor": 23,
    "android.content.Context.getSystemService": 23,
    "android.content.Context.startForegroundService": 26,
    "android.os.PowerManager.isPowerSaveMode": 21,
}
"""What the app uses without a check, beyond API 17, and the level that has it."""
NEWER_RESOURCES = {
    "accessibilityLiveRegion": 19,
    "fillColor": 21,
    "inset": 21,
    "pathData": 21,
    "viewportHeight": 21,
    "viewportWidth": 21,
    "fullBackupContent": 23,
    "importantForAutofill": 26,
    "foregroundServiceType": 29,
    "dataExtractionRules": 31,
}
"""The same of styles and attributes. Older systems pass over the last two."""
GUARDED = ("POST_NOTIFICATIONS",)
"""Constants of newer systems."""


def kotlin_files() -> list[Path]:
    return sorted(KOTLIN.glob("*.kt"))


@pytest.fixture(scope="module")
def against(on_jvm: OnJvm, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What the app's Kotlin is compiled against."""
    from rehearsal.downloads import fetch
    from rehearsal.signatures import android_signatures

    java = tmp_path_factory.mktemp("resources") / "own"
    own = java / "org/seedtune/demo"
    own.mkdir(parents=True)
    (own / "R.java").write_text(resource_class(APP / "res", "org.seedtune.demo"))
    return [android_signatures(), java, fetch("kotlin") / "annotations-13.0.jar"]


@pytest.mark.android
def test_kotlin_compiles_without_a_warning(against: list[Path]) -> None:
    from rehearsal.kotlin import compile_kotlin

    classes = compile_kotlin([KOTLIN], against)
    assert (classes / "org/seedtune/demo/TuneService.class").is_file()


@pytest.mark.android
def test_nothing_newer_than_the_oldest_system_without_a_check(against: list[Path]) -> None:
    """Beyond API 17, whose classes are at hand, each is listed with the level that brought it."""
    from rehearsal.downloads import fetch
    from rehearsal.kotlin import compile_kotlin
    from rehearsal.references import newer_than
    from rehearsal.signatures import OLDEST_SYSTEM

    classes = compile_kotlin([KOTLIN], against)
    found = newer_than(fetch("android") / "android-17.jar", classes)
    assert found == set(NEWER)
    assert max(NEWER.values()) <= OLDEST_SYSTEM
    assert f"minSdk = {OLDEST_SYSTEM}" in (DEMO / "app/build.gradle.kts").read_text()
    # The constants below are numbers and texts in the classes: their lines are looked at instead.
    for file in kotlin_files():
        lines = file.read_text().splitlines()
        for place, line in enumerate(lines):
            if any(name in line for name in GUARDED):
                assert "Build.VERSION.SDK_INT >=" in "\n".join(lines[max(0, place - 2) : place + 1])


@pytest.mark.android
@needs_tools
class TestPackage:
    """What Gradle would call, called by hand; Python is not in it."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("package")

    @pytest.fixture(scope="class")
    def linked(self, folder: Path) -> Path:
        return packaging.link(folder)

    @pytest.fixture(scope="class")
    def classes(self, against: list[Path]) -> Path:
        from rehearsal.kotlin import compile_kotlin

        return compile_kotlin([KOTLIN], against)

    @pytest.fixture(scope="class")
    def code(self, classes: Path, folder: Path) -> Path:
        return packaging.dex(classes, folder)

    @pytest.fixture(scope="class")
    def apk(self, linked: Path, code: Path, folder: Path) -> Path:
        return packaging.package(linked, code, folder)

    def test_resources_link(self, linked: Path) -> None:
        real = (linked.parent / "org/seedtune/demo/R.java").read_text()
        ours = resource_class(APP / "res", "x")
        assert set(re.findall(r"int (\w+)=", real)) == set(re.findall(r"int (\w+) =", ours))

    def test_the_classes_become_dex(self, classes: Path, code: Path) -> None:
        found = packaging.dex_classes(code)
        own = {
            str(file.relative_to(classes).with_suffix(""))
            for file in classes.rglob("org/seedtune/**/*.class")
        }
        assert len(own) > 20 and own <= found
        assert "org/pytorch/executorch/Module" in found

    def test_it_holds_what_a_phone_looks_for(self, apk: Path) -> None:
        with zipfile.ZipFile(apk) as archive:
            names = set(archive.namelist())
        wanted = {"AndroidManifest.xml", "classes.dex", "resources.arsc"}
        wanted |= {
            f"lib/{abi}/lib{name}.so"
            for abi in ("arm64-v8a", "x86_64")
            for name in ("executorch", "fbjni", "c++_shared")
        }
        assert wanted <= names
        asked = {each.rpartition(".")[2] for each in packaging.permissions(apk)}
        assert asked == ASKED

    def test_its_signature_verifies_and_an_altered_one_does_not(
        self, apk: Path, tmp_path: Path
    ) -> None:
        assert {"v2", "v3"} <= packaging.verify(apk)
        data = bytearray(apk.read_bytes())
        data[len(data) // 2] ^= 1
        altered = tmp_path / "altered.apk"
        altered.write_bytes(data)
        with pytest.raises(packaging.PackagingError, match="apksigner"):
            packaging.verify(altered)


@pytest.mark.android
def test_resources_name_nothing_newer_than_the_oldest_system(on_jvm: OnJvm) -> None:
    """Styles and attributes of Android that its API 17 lacks are listed, with their levels."""
    from rehearsal.downloads import fetch
    from rehearsal.references import Classes
    from rehearsal.signatures import OLDEST_SYSTEM

    classes = Classes(fetch("android") / "android-17.jar")
    missing: set[str] = set()
    for file in [MANIFEST, *(APP / "res").rglob("*.xml")]:
        text = file.read_text()
        used = {("style", each) for each in re.findall(r"@android:style/([\w.]+)", text)}
        used |= {("attr", each) for each in re.findall(r"\?android:attr/(\w+)", text)}
        used |= {("attr", each) for each in re.findall(r"\bandroid:(\w+)=", text)}
        for kind, name in used:
            found = classes.find(f"android/R${kind}")
            assert found is not None
            if name.replace(".", "_") not in {member for member, _ in found.members}:
                missing.add(name)
    assert missing == set(NEWER_RESOURCES)
    for name, level in NEWER_RESOURCES.items():
        assert level <= OLDEST_SYSTEM or name in ("foregroundServiceType", "dataExtractionRules")


def test_pure_files_import_nothing_of_android() -> None:
    for name in PURE:
        imports = re.findall(r"^import (\S+)", (KOTLIN / name).read_text(), re.MULTILINE)
        assert all(each.startswith("java.") for each in imports), (name, imports)


def test_the_manifest_asks_for_little() -> None:
    root = ElementTree.parse(MANIFEST).getroot()
    asked = {
        each.attrib[f"{ANDROID}name"].rpartition(".")[2]: each.attrib
        for each in root.iter("uses-permission")
    }
    removed = {name for name, how in asked.items() if "remove" in how.values()}
    assert removed == {"INTERNET", "ACCESS_NETWORK_STATE"}
    assert set(asked) - removed == ASKED
    application = root.find("application")
    assert application is not None
    assert application.attrib[f"{ANDROID}allowBackup"] == "false"
    names = {file.stem for file in kotlin_files()}
    parts = [*application.iter("activity"), *application.iter("service")]
    assert {part.attrib[f"{ANDROID}name"].removeprefix(".") for part in parts} <= names
    exported = [part for part in parts if part.attrib[f"{ANDROID}exported"] == "true"]
    assert [part.attrib[f"{ANDROID}name"] for part in exported] == [".MainActivity"]


def test_resources_are_defined_and_used() -> None:
    assert not unknown_references(APP / "res", MANIFEST)
    defined = resource_class(APP / "res", "x")
    sources = "".join(file.read_text() for file in kotlin_files())
    everything = sources + MANIFEST.read_text()
    everything += "".join(file.read_text() for file in (APP / "res/layout").glob("*.xml"))
    for kind, name in re.findall(r"R\.(\w+)\.(\w+)", sources.replace("android.R.", "")):
        assert re.search(rf"class {kind} {{[^\n]* {name} =", defined), (kind, name)
    for name in re.findall(r'<string name="(\w+)"', (APP / "res/values/strings.xml").read_text()):
        assert re.search(rf"(R\.string\.|@string/){name}\b", everything), f"{name} is not used"


def test_a_text_with_a_place_to_fill_is_never_shown_as_it_stands() -> None:
    """A layout cannot fill it: a slider would read ``%1$d`` aloud."""
    strings = ElementTree.parse(APP / "res/values/strings.xml").getroot()
    open_ones = {each.attrib["name"] for each in strings if "%" in (each.text or "")}
    assert len(open_ones) > 5
    for file in [MANIFEST, *(APP / "res").glob("layout/*.xml")]:
        assert not open_ones & set(re.findall(r"@string/(\w+)", file.read_text())), file


def test_what_is_touched_has_a_label_and_room_and_what_is_typed_has_bounds() -> None:
    for file in (APP / "res").glob("layout/*.xml"):
        views = list(ElementTree.parse(file).getroot().iter())
        labelled = {each.get(f"{ANDROID}labelFor", "").rpartition("/")[2] for each in views}
        for view in views:
            name = view.get(f"{ANDROID}id", "").rpartition("/")[2]
            if view.tag in ("SeekBar", "CheckBox"):
                said = {view.get(f"{ANDROID}{what}") for what in ("text", "contentDescription")}
                assert said != {None} or name in labelled, name
                assert view.get(f"{ANDROID}minHeight") == "48dp", name
            if view.tag == "EditText":
                assert view.get(f"{ANDROID}hint"), name
                # Android keeps it with the screen, in at most some hundred kilobytes.
                single = view.get(f"{ANDROID}inputType") == "text"
                assert single or int(view.attrib[f"{ANDROID}maxLength"]) <= 100_000, name


def test_the_project_names_its_versions_in_one_place() -> None:
    catalog = tomllib.loads((DEMO / "gradle/libs.versions.toml").read_text())
    build = (DEMO / "app/build.gradle.kts").read_text()
    for alias in catalog["plugins"]:
        assert f"libs.plugins.{alias.replace('-', '.')}" in build
    assert "libs.executorch.android" in build
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    executorch = catalog["versions"]["executorch"]
    wanted = next(
        each for each in required["optional-dependencies"]["host"] if "executorch" in each
    )
    assert f">={executorch}," in wanted
    installed = dict(re.findall(r'install\("(\w+)==([\d.]+)"\)', build))
    assert installed.keys() == {re.split("[><=]", each)[0] for each in required["dependencies"]}
    assert 'from(rootDir.resolve("../runtime"))' in build


def test_the_app_is_small() -> None:
    """Lines of Kotlin and Python in the app, without blank ones, comments and docstrings."""
    count = 0
    for file in kotlin_files():
        lines = [line.strip() for line in file.read_text().splitlines()]
        count += sum(1 for line in lines if line and not line.startswith(("//", "/*", "*")))
    for file in (APP / "python").rglob("*.py"):
        count += _python_lines(file.read_text())
    assert count < 1200, count


def _python_lines(text: str) -> int:
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body: Any = getattr(node, "body", [])
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            lines -= set(range(first.lineno, (first.end_lineno or 0) + 1))
    return len(lines)


def test_the_readme_says_what_was_never_run() -> None:
    text = (DEMO / "README.md").read_text()
    assert "never run on a phone by us" in text
    assert "seedtune push-android" in text
