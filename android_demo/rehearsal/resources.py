"""The app's ``R`` class as a Java source, from its resources."""

import re
from pathlib import Path
from xml.etree import ElementTree

_ID = "{http://schemas.android.com/apk/res/android}id"


def resource_class(resources: Path, package: str) -> str:
    """Java source of ``R``: an int for each id, string, colour, drawable and layout."""
    found: dict[str, set[str]] = {}
    for file in sorted(resources.rglob("*.xml")):
        kind = file.parent.name.partition("-")[0]
        root = ElementTree.parse(file).getroot()
        if kind == "values":
            for each in root:
                found.setdefault(each.tag, set()).add(each.attrib["name"])
            continue
        found.setdefault(kind, set()).add(file.stem)
        for each in root.iter():
            if each.get(_ID, "").startswith("@+id/"):
                found.setdefault("id", set()).add(each.attrib[_ID].removeprefix("@+id/"))
    classes = "".join(
        f"public static final class {kind} {{"
        + "".join(f" public static final int {name} = 0;" for name in sorted(names))
        + " }\n"
        for kind, names in sorted(found.items())
    )
    return f"package {package};\npublic final class R {{\n{classes}}}\n"


def unknown_references(resources: Path, manifest: Path) -> set[str]:
    """References to the app's own resources, such as ``@string/x``, that nothing defines."""
    java = resource_class(resources, "x")
    defined = {
        f"{kind}/{name}"
        for kind, body in re.findall(r"class (\w+) \{(.*)\}", java)
        for name in re.findall(r"int (\w+) =", body)
    }
    used: set[str] = set()
    for file in [manifest, *resources.rglob("*.xml")]:
        used.update(re.findall(r'"@(\w+/\w+)"', file.read_text()))
    return used - defined
