"""The app as a signed package, made without Gradle: resources, DEX, libraries of both processors.

It lacks Python, which Chaquopy's plug-in brings, so it is no app to install. It shows that the
parts become what Android takes, by the tools that Gradle calls.
"""

import shutil
import zipfile
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from .downloads import fetch, run

APP = Path(__file__).parents[1] / "app/src/main"
PACKAGE = "org.seedtune.demo"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
_ANDROID = "http://schemas.android.com/apk/res/android"
_TOOLS = "http://schemas.android.com/tools"
_FOLDERS = {"x86_64": "x86_64", "arm64": "arm64-v8a"}
_PASSWORD = "pass:android"
_run = partial(run, strict=True)


def missing() -> list[str]:
    """Debian's packages that are not installed."""
    wanted = {
        "aapt": shutil.which("aapt2"),
        "android-framework-res": FRAMEWORK.exists(),
        "apksigner": shutil.which("apksigner"),
        "dexdump": shutil.which("dexdump"),
        "zipalign": shutil.which("zipalign"),
    }
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
    _run("aapt2", "compile", "--dir", APP / "res", "-o", folder / "compiled.zip")
    _run(
        *("aapt2", "link", "-I", FRAMEWORK, "--manifest", folder / "AndroidManifest.xml"),
        *("--java", folder / "own", "--min-sdk-version", "26", "--target-sdk-version", "33"),
        *("--version-code", "1", "-o", linked, folder / "compiled.zip"),
    )
    return linked


def dex(classes: Path, folder: Path) -> Path:
    """The app's own classes and ExecuTorch's as DEX; Kotlin's library is only referred to."""
    android = fetch("android")
    own = [file for file in classes.rglob("*.class") if PACKAGE.replace(".", "/") in str(file)]
    _run(
        *("java", "-XX:TieredStopAtLevel=1", "-cp", android / "d8.jar"),
        *("com.android.tools.r8.D8", "--min-api", "26", "--output", folder),
        *("--lib", android / "android-17.jar"),
        *("--classpath", fetch("kotlin") / "kotlin-stdlib.jar"),
        *(fetch("executorch") / "executorch.jar", fetch("fbjni-java") / "fbjni.jar", *own),
    )
    return folder / "classes.dex"


def dex_classes(file: Path) -> set[str]:
    """Names of the classes in it, as ``dexdump`` reads them."""
    lines = [line.split() for line in _run("dexdump", file).splitlines()]
    descriptors = [line[-1] for line in lines if line[:2] == ["Class", "descriptor"]]
    return {each.strip("'").removeprefix("L").removesuffix(";") for each in descriptors}


def package(linked: Path, code: Path, folder: Path) -> Path:
    """An aligned package, signed by a key made here."""
    whole, aligned, key = (folder / name for name in ("whole.apk", "aligned.apk", "key.p12"))
    shutil.copy(linked, whole)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        archive.write(code, "classes.dex")
        for machine, name in _FOLDERS.items():
            for source in ("executorch", "fbjni"):
                for file in sorted((fetch(source) / machine).iterdir()):
                    archive.write(file, f"lib/{name}/{file.name}")
    _run("zipalign", "-p", "4", whole, aligned)
    if not key.exists():
        _run(
            *("keytool", "-genkeypair", "-keystore", key, "-storepass", _PASSWORD[5:]),
            *("-alias", "own", "-keyalg", "EC", "-validity", "10000", "-dname", "CN=rehearsal"),
        )
    _run("apksigner", "sign", "--ks", key, "--ks-pass", _PASSWORD, aligned)
    return aligned


def verify(apk: Path) -> set[str]:
    """Schemes by which its signature holds, such as ``v2``.

    Raises:
        RehearsalError: it does not hold.
    """
    _run("zipalign", "-c", "-p", "4", apk)
    said = _run("apksigner", "verify", "--verbose", "--min-sdk-version", "26", apk)
    held = [line.split()[2] for line in said.splitlines() if line.endswith("): true")]
    return set(held)


def permissions(apk: Path) -> set[str]:
    """What it asks for."""
    lines = _run("aapt2", "dump", "permissions", apk).splitlines()
    return {line.split("'")[1] for line in lines if line.startswith("uses-permission")}
