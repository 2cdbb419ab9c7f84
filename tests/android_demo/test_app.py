"""The app as a project: its Kotlin compiles, its parts refer to each other, it asks for little."""

import re
import tomllib
import zipfile
from xml.etree import ElementTree

import pytest
from jvm_scripts import DEMO
from rehearsal import packaging
from rehearsal.downloads import RehearsalError
from rehearsal.phone import APP, KOTLIN, PURE

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


def kotlin_files():
    return sorted(KOTLIN.glob("*.kt"))


@pytest.mark.android
@needs_tools
class TestPackage:
    """What Gradle would call, called by hand; Python is not in it."""

    @pytest.fixture(scope="class")
    def folder(self, on_jvm, tmp_path_factory):
        return tmp_path_factory.mktemp("package")

    @pytest.fixture(scope="class")
    def linked(self, folder):
        return packaging.link(folder)

    @pytest.fixture(scope="class")
    def classes(self, linked):
        """Of all Kotlin; a warning would count as an error."""
        from rehearsal.downloads import fetch
        from rehearsal.kotlin import compile_kotlin
        from rehearsal.signatures import android_signatures

        annotations = fetch("kotlin") / "annotations-13.0.jar"
        return compile_kotlin([KOTLIN], [android_signatures(), linked.parent / "own", annotations])

    @pytest.fixture(scope="class")
    def code(self, classes, folder):
        return packaging.dex(classes, folder)

    @pytest.fixture(scope="class")
    def apk(self, linked, code, folder):
        return packaging.package(linked, code, folder)

    def test_all_of_it_compiles_and_becomes_dex(self, classes, code):
        found = packaging.dex_classes(code)
        own = {
            str(file.relative_to(classes).with_suffix(""))
            for file in classes.rglob("org/seedtune/**/*.class")
        }
        assert len(own) > 20 and own <= found
        assert "org/pytorch/executorch/Module" in found

    def test_it_holds_what_a_phone_looks_for(self, apk):
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

    def test_its_signature_verifies_and_an_altered_one_does_not(self, apk, tmp_path):
        assert {"v2", "v3"} <= packaging.verify(apk)
        data = bytearray(apk.read_bytes())
        data[len(data) // 2] ^= 1
        altered = tmp_path / "altered.apk"
        altered.write_bytes(data)
        with pytest.raises(RehearsalError, match="apksigner"):
            packaging.verify(altered)


def test_pure_files_import_nothing_of_android():
    for name in PURE:
        imports = re.findall(r"^import (\S+)", (KOTLIN / name).read_text(), re.MULTILINE)
        assert all(each.startswith("java.") for each in imports), (name, imports)


def test_the_manifest_asks_for_little():
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


def test_a_text_with_a_place_to_fill_is_never_shown_as_it_stands():
    """A layout cannot fill it: a slider would read ``%1$d`` aloud."""
    strings = ElementTree.parse(APP / "res/values/strings.xml").getroot()
    open_ones = {each.attrib["name"] for each in strings if "%" in (each.text or "")}
    assert len(open_ones) > 5
    for file in [MANIFEST, *(APP / "res").glob("layout/*.xml")]:
        assert not open_ones & set(re.findall(r"@string/(\w+)", file.read_text())), file


def test_what_is_touched_has_a_label_and_room_and_what_is_typed_has_bounds():
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


def test_the_project_names_its_versions_in_one_place():
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


def test_the_readme_says_what_was_never_run():
    text = (DEMO / "README.md").read_text()
    assert "never run on a phone by us" in text
