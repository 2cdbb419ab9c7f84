"""The app's resources and classes as Android takes them, made without Gradle by the tools that it
calls."""

import shutil
from pathlib import Path
from xml.etree import ElementTree

from .downloads import fetch, run

APP = Path(__file__).parents[1] / "app/src/main"
PACKAGE = "org.seedtune.demo"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
_ANDROID = "http://schemas.android.com/apk/res/android"
_TOOLS = "http://schemas.android.com/tools"


def missing() -> list[str]:
    """Debian's packages that are not installed."""
    wanted = {"aapt": shutil.which("aapt2"), "android-framework-res": FRAMEWORK.exists()}
    return [name for name, there in wanted.items() if not there]


def link(folder: Path) -> Path:
    """The manifest and the resources in one package; the ``R`` class as a Java source in ``own``.

    The framework is of API 33, which does not know the newest kind of service yet. What Android's
    plug-in does beforehand, to name the package and to take out what is marked so, is done here.
    """
    for prefix, name in (("android", _ANDROID), ("tools", _TOOLS)):
        ElementTree.register_namespace(prefix, name)
    tree = ElementTree.parse(APP / "AndroidManifest.xml")
    root = tree.getroot()
    root.set("package", PACKAGE)
    for each in root.findall(f"*[@{{{_TOOLS}}}node='remove']"):
        root.remove(each)
    for service in root.iter("service"):
        service.set(f"{{{_ANDROID}}}foregroundServiceType", "dataSync")
    tree.write(folder / "AndroidManifest.xml", encoding="utf-8", xml_declaration=True)
    linked = folder / "linked.apk"
    run("aapt2", "compile", "--dir", APP / "res", "-o", folder / "compiled.zip", strict=True)
    run(
        *("aapt2", "link", "-I", FRAMEWORK, "--manifest", folder / "AndroidManifest.xml"),
        *("--java", folder / "own", "--min-sdk-version", "26", "--target-sdk-version", "33"),
        *("--version-code", "1", "-o", linked, folder / "compiled.zip"),
        strict=True,
    )
    return linked


def dex(classes: Path, folder: Path) -> Path:
    """The app's own classes and ExecuTorch's as DEX; Kotlin's library is only referred to."""
    android = fetch("android")
    own = [file for file in classes.rglob("*.class") if PACKAGE.replace(".", "/") in str(file)]
    run(
        *("java", "-XX:TieredStopAtLevel=1", "-cp", android / "d8.jar"),
        *("com.android.tools.r8.D8", "--min-api", "26", "--output", folder),
        *("--lib", android / "android-17.jar"),
        *("--classpath", fetch("kotlin") / "kotlin-stdlib.jar"),
        *(fetch("executorch") / "executorch.jar", fetch("fbjni-java") / "fbjni.jar", *own),
        strict=True,
    )
    return folder / "classes.dex"
