"""``phone_run.py SCENARIO ROOT BUNDLE``: the app on a JVM; each scenario is one life of a process.

Prints what happened as JSON. The pairs ``begin`` and ``go_on`` are lives before and after a kill.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

from rehearsal import jvm
from rehearsal.phone import Phone

SETTINGS = {"batch_size": 4, "eval_every": 2, "steps": 6}
WORDS = ("rain", "a cat", "a town", "numbers", "a film", "the mat", "humour", "patience")


def give_material(phone: Phone, archive: Path) -> None:
    """A model, messages with kinds, and a text."""
    good(phone.take_bundle(archive))
    good(phone.app.name_labels("Great, Terrible"))
    lines = [f"{word} and {other}" for word in WORDS for other in WORDS[:5]]
    assert good(phone.app.add_messages("\n".join(lines))) == len(lines)
    for place, line in enumerate(lines[:-2]):
        good(
            phone.app.tap(place, "Great" if line.split()[0] in ("rain", "numbers") else "Terrible")
        )
    text = "\n".join(
        f"It was {word}, told with {other} and good humour." for word in WORDS for other in WORDS
    )
    assert good(phone.app.write(text * 4)) > 8


def good(answer: str) -> Any:
    found = json.loads(answer)
    assert "error" not in found, found
    return found["ok"]


def bad(answer: str) -> str:
    line = json.loads(answer)["error"]
    assert "\n" not in line and len(line) < 500, line
    return str(line)


def hash_of(phone: Phone, kind: str) -> str:
    """Of the journal's steps: the values after the last one."""
    from seedtune.runtime.journal.start import Start
    from seedtune.runtime.journal.state import replay

    return replay(phone.app._run_folder(kind), Start.of(phone.app._opened())).sha256


def renamed(bundle: Path, archive: Path) -> Path:
    """The same bundle under another name, so with another hash, as one file."""
    from seedtune.runtime.bundle import pack_bundle

    folder = archive.with_name("renamed")
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["name"] = "another"
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return pack_bundle(folder, archive)


def forge(archive: Path) -> Path:
    """The same with other values, as whoever knows how an archive is made would write it."""
    forged = archive.with_name("forged")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(forged, "w") as target:
        for info in source.infolist():
            content = bytearray(source.read(info))
            if info.filename == "values.safetensors":
                content[-1] ^= 1
            target.writestr(info, bytes(content))
    return forged


def picked(bundle: Path, root: Path) -> Path:
    """The bundle as one file, taken in by the app's own Kotlin."""
    from java import jclass
    from seedtune.runtime.bundle import open_bundle
    from seedtune.runtime.bundle.archive import pack_archive

    archive = root.parent / "model.seedtune"
    if not archive.exists():
        pack_archive(bundle, open_bundle(bundle).manifest["parts"], archive)
    told: list[tuple[int, int]] = []
    progress = function(2, lambda done, size: told.append((int(done), int(size))))
    stream = function(0, lambda: jclass("java.io.FileInputStream")(str(archive)))
    size = archive.stat().st_size
    for said in (size, 0):  # some that give a file do not know its size
        taken = intake(root.parent).take(size_of(said), progress, stream)
        assert told[-1] == (size, said)
    copy = Path(str(taken.getPath()))
    assert copy.read_bytes() == archive.read_bytes()
    return copy


def size_of(size: int) -> Any:
    """What the app asks whoever gives a file."""
    import jpype

    return function(0, lambda: jpype.JObject(jpype.java.lang.Long(size)))


def intake(folder: Path, free: int | None = None) -> Any:
    import jpype
    from java import jclass

    file = jclass("java.io.File")(str(folder / "incoming"))
    room = (lambda f: jpype.JLong(free)) if free is not None else (lambda f: f.getUsableSpace())
    asked = function(1, lambda f: jpype.JObject(jpype.java.lang.Long(room(f))))
    return jclass("org.seedtune.demo.Intake")(file, asked)


def function(arguments: int, work: Any) -> Any:
    """A Kotlin lambda."""
    import jpype

    return jpype.JProxy(f"kotlin.jvm.functions.Function{arguments}", dict={"invoke": work})


def sort(root: Path, bundle: Path) -> dict[str, Any]:
    """A whole life without accidents: learn, rest, go on, use, undo, again, wipe."""
    phone = Phone(root, **SETTINGS)
    found: dict[str, Any] = {"empty": good(phone.app.state())}
    found["too early"] = [phone.learn("sort"), bad(phone.app.predict("sort", "a cat"))]
    give_material(phone, picked(bundle, root))
    found["ready"], found["checked"] = good(phone.app.state()), phone.checked
    found["messages"] = good(phone.app.messages())
    phone.reports.clear()

    def rest_after_two(report: Any) -> None:
        if report[1] == 2 and len([r for r in phone.reports if r[1] == 2]) == 1:
            phone.trainer.pause()

    phone.heard = rest_after_two
    phone.trainer.start("sort", 1.0)
    assert not phone.trainer.start("write", 1.0), "one session at a time"
    phone.wait(lambda r: r[3])
    found["busy"] = [bad(phone.app.undo("sort", 1)), bad(phone.app.wipe())]
    phone.trainer.heed("the phone is not charging")
    phone.trainer.resume()
    time.sleep(0.3)
    found["still said"] = list(phone.reports[-1])
    good(phone.app.predict("sort", "a cat and rain"))  # which must not disturb the run
    found["still resting at"] = good(phone.app.progress("sort"))["steps"]
    phone.trainer.heed(None)
    assert phone.trainer.join(60_000)
    found["reports"] = [list(report) for report in phone.reports]
    found["progress"] = good(phone.app.progress("sort"))
    found["whole"] = hash_of(phone, "sort")
    found["predicted"] = good(phone.app.predict("sort", "a cat and rain"))
    good(phone.app.undo("sort", 3))
    found["undone"] = hash_of(phone, "sort")
    found["undone progress"] = good(phone.app.progress("sort"))
    found["too far"] = bad(phone.app.undo("sort", 5))
    phone.learn("sort")
    found["again"] = hash_of(phone, "sort")
    good(phone.app.tap(0, "Terrible"))
    found["changed"] = good(phone.app.progress("sort"))["fresh"]
    good(phone.app.name_labels("Yes, No"))
    found["other task"] = good(phone.app.progress("sort"))
    good(phone.app.wipe())
    found["left"] = sorted(str(each) for each in root.rglob("*"))
    found["wiped"] = good(phone.app.state())
    return found


def write(root: Path, bundle: Path) -> dict[str, Any]:
    phone = Phone(root, **SETTINGS)
    from java import jclass

    give_material(phone, picked(bundle, root))
    line = phone.learn("write")
    found = {"line": line, "progress": good(phone.app.progress("write"))}
    found["predicted"] = good(phone.app.predict("write", "It was rain, told with a cat."))
    found["hash"] = hash_of(phone, "write")
    good(phone.app.undo("write", 0))
    phone.learn("write", 0.2)
    found["again"] = hash_of(phone, "write")
    phone.reports.clear()
    text = root.parent / "text.txt"
    text.write_text("It was humour, töld twice. " * 90)
    stream = function(0, lambda: jclass("java.io.FileInputStream")(str(text)))
    found["read"] = [len(str(intake(root.parent).text(most, stream))) for most in (100, 10**6)]
    found["more"] = [good(phone.app.write(each)) for each in ("", text.read_text(), "töld twice.")]
    good(phone.app.undo("write", 0))
    phone.heard = lambda report: report[1] == 1 and phone.trainer.stop()
    found["stopped"] = [phone.learn("write"), good(phone.app.state())["unfinished"]]
    return found


def forget(root: Path, bundle: Path) -> dict[str, Any]:
    """What it remembers of a text, some of it, and none."""
    phone = Phone(root, **SETTINGS)
    from seedtune_app.material import Writing

    give_material(phone, picked(bundle, root))
    found: dict[str, Any] = {
        "nothing": [good(phone.app.remembered()), bad(phone.app.forget("rain"))]
    }
    found["line"] = phone.learn("write")
    found["first"] = good(phone.app.remembered())
    rows = len(Writing(root).rows())
    good(phone.app.forget(found["first"][0]["text"].upper()))
    found["rest"] = good(phone.app.remembered())
    found["rows"] = [rows, len(Writing(root).rows())]
    found["unknown"] = bad(phone.app.forget("nobody said this"))
    good(phone.app.forget(None))
    found["none"] = [good(phone.app.remembered()), Writing(root).rows()]
    return found


def begin(root: Path, bundle: Path, kind: str, paused: str = "") -> None:
    """Killed after the third step, or while it rests there."""
    phone = Phone(root, **SETTINGS)
    give_material(phone, picked(bundle, root))

    def kill(report: Any) -> None:
        if report[1] == 3 and paused and not report[3]:
            phone.trainer.pause()
        elif report[1] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    phone.heard = kill
    phone.learn(kind)


def start_and_die(root: Path, bundle: Path) -> None:
    """Killed before the first step, as by a defect of the library that loads the program."""
    phone = Phone(root, **SETTINGS)
    if not (root / "messages.json").exists():
        give_material(phone, picked(bundle, root))
    phone.heard = lambda report: (
        report[0].startswith("Judging") and os.kill(os.getpid(), signal.SIGKILL)
    )
    phone.learn("" if good(phone.app.state())["unfinished"] else "sort")


def after_deaths(root: Path, bundle: Path) -> dict[str, Any]:
    """Nothing begins by itself any more, but what the user asks for does."""
    phone = Phone(root, **SETTINGS)
    found = {"unfinished": good(phone.app.state())["unfinished"], "by itself": phone.learn("")}
    return found | {"asked": phone.learn("sort"), "left": (root / "learning.json").exists()}


def go_on_paused(root: Path, bundle: Path) -> dict[str, Any]:
    """Rests still, as the user wished; goes on when told to."""
    phone = Phone(root, **SETTINGS)
    phone.trainer.start("", 0.0)
    phone.wait(lambda report: report[3])
    time.sleep(0.3)
    steps = good(phone.app.progress("sort"))["steps"]
    phone.trainer.resume()
    assert phone.trainer.join(60_000)
    return {"steps": [steps, good(phone.app.progress("sort"))["steps"]]}


def go_on(root: Path, bundle: Path) -> dict[str, Any]:
    """The system starts the service anew: no word of what was being done but the marker."""
    phone = Phone(root, **SETTINGS | {"batch_size": 3})  # of a newer app: the run has its own
    before = good(phone.app.state())["unfinished"]
    line = phone.learn("", 0.0)
    first = next(report[1] for report in phone.reports if report[1])
    after = good(phone.app.state())["unfinished"]
    nothing = phone.learn("")
    killed = hash_of(phone, "write")
    good(phone.app.undo("write", 0))
    phone.learn("write")
    found = {"unfinished": [before, after], "line": line, "first step": first, "nothing": nothing}
    return found | {"hashes": [killed, hash_of(phone, "write")]}


def stopped_early(root: Path, bundle: Path) -> dict[str, Any]:
    """Stopped while it gets ready, which takes long where something else has the model."""
    phone = Phone(root, **SETTINGS)
    give_material(phone, picked(bundle, root))
    found = {}
    for what, reason in (("at once", None), ("resting", "the phone is warm")):
        phone.trainer.heed(reason)
        with phone.app._lock:
            phone.trainer.start("sort", 1.0)
            time.sleep(0.3)
            phone.trainer.stop()
        assert phone.trainer.join(60_000), phone.reports
        steps = good(phone.app.progress("sort"))["steps"]
        found[what] = [phone.reports[-1][0], steps, good(phone.app.state())["unfinished"]]
    phone.trainer.heed(None)
    return found | {"afterwards": phone.learn("sort")}


def accidents(root: Path, bundle: Path) -> dict[str, Any]:
    """Each gives one line and loses nothing."""
    phone = Phone(root, **SETTINGS)
    from java import jclass

    archive = picked(bundle, root)
    kept = archive.with_name("kept")
    shutil.copy(archive, kept)
    give_material(phone, archive)
    found: dict[str, Any] = {"whole line": phone.learn("sort"), "whole": hash_of(phone, "sort")}
    used = good(phone.app.state())["bundle"]

    # A broken bundle: the one in use stays.
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    forged = forge(kept).read_bytes()
    for what, content in (
        ("altered", bytes(data)),
        ("forged", forged),
        ("cut", bytes(data[:5000])),
        ("other", b"x"),
    ):
        file = archive.with_name(what)
        file.write_bytes(content)
        found[what] = bad(phone.take_bundle(file))
        assert not file.exists()
    assert good(phone.app.state())["bundle"] == used

    # Another bundle while it learns is refused and kept; afterwards each has its own run.
    other = renamed(bundle, archive.with_name("other"))
    phone.app._session = object()
    found["busy"] = bad(phone.take_bundle(other))
    phone.app._session = None
    assert good(phone.take_bundle(other))["sha256"] != used["sha256"]
    assert not other.exists() and good(phone.app.progress("sort")) is None
    phone.learn("sort")
    assert good(phone.app.progress("sort"))["steps"] == 6
    shutil.copy(kept, archive)
    assert good(phone.take_bundle(archive)) == used
    phone.learn("sort")
    found["back"] = hash_of(phone, "sort")

    # A picked file that may not be read any more, or does not fit.
    nothing = function(2, lambda done, size: None)

    def refused() -> Any:
        raise jclass("java.lang.SecurityException")("Permission Denial: reading provider")

    for what, size, free, stream in (
        ("revoked at once", refused, None, lambda: None),
        ("revoked", 10**6, None, lambda: jclass("org.seedtune.rehearsal.RevokedStream")(200_000)),
        ("gone", 10**6, None, lambda: None),
        (
            "shorter",
            10**6,
            None,
            lambda: jclass("java.io.FileInputStream")(str(root / "bundle.json")),
        ),
        ("too full", 10**9, 10**8, lambda: None),
    ):
        try:
            asked = function(0, size) if callable(size) else size_of(size)
            intake(root.parent, free).take(asked, nothing, function(0, stream))
        except jclass("org.seedtune.demo.IntakeFailed") as error:
            found[what] = str(error.getMessage())
        assert not list((root.parent / "incoming").glob("picked*"))
    try:
        stream = function(0, lambda: jclass("org.seedtune.rehearsal.RevokedStream")(500))
        intake(root.parent).text(1000, stream)
    except jclass("org.seedtune.demo.IntakeFailed") as error:
        found["revoked text"] = str(error.getMessage())

    # A process that was killed in copying left a part; one that was killed in checking left it all.
    part = root.parent / "incoming" / "picked.seedtune.part"
    part.write_bytes(b"x")
    found["waiting"] = [str(intake(root.parent).waiting()), part.exists()]
    whole = part.with_suffix("")
    whole.write_bytes(b"x")
    found["waiting"].append(str(intake(root.parent).waiting().getName()))
    whole.unlink()

    # A full disk while learning.
    good(phone.app.undo("sort", 0))
    real, left = os.write, [4]

    def full(descriptor: int, content: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content)

    os.write = full
    found["full"] = phone.learn("sort")
    found["full wrote"] = -left[0]
    os.write = real
    found["after full at"] = good(phone.app.progress("sort"))["steps"]
    phone.learn("sort")
    found["after full"] = hash_of(phone, "sort")

    # Java fails in the middle of a run.
    good(phone.app.undo("sort", 0))

    def destroy(report: Any) -> None:
        if report[1] == 2 and report[2]:
            phone.app._model.engine._module.destroy()

    phone.heard = destroy
    found["java"] = phone.learn("sort")
    phone.heard = lambda report: None
    found["after java at"] = good(phone.app.progress("sort"))["steps"]
    phone.learn("sort")
    found["after java"] = hash_of(phone, "sort")

    # The bridge to Python itself fails.
    def broken(*arguments: Any) -> str:
        raise RuntimeError("no such\nmethod")

    phone.app.learn = broken
    found["bridge"] = phone.learn("sort")
    found["active"] = phone.reports[-1][2]
    return found


def pure(root: Path, bundle: Path) -> dict[str, Any]:
    """Kotlin that needs no Python: when to rest, and where a chart's points stand."""
    Phone(root)
    from java import jclass

    state, wishes = jclass("org.seedtune.demo.PhoneState"), jclass("org.seedtune.demo.Wishes")
    conditions = jclass("org.seedtune.demo.Conditions")
    integer = jclass("java.lang.Integer")
    asked, free = wishes(True, True), wishes(False, False)

    def reasons(*states: Any, wish: Any = asked) -> list[str | None]:
        rule = conditions()
        said = [
            rule.reason(state(c, t if t is None else integer(t), b, s), wish)
            for c, t, b, s in states
        ]
        return [None if each is None else str(each) for each in said]

    curve = jclass("org.seedtune.demo.Curve")
    pair, array = jclass("kotlin.Pair"), jclass("java.util.ArrayList")()
    for x, y in ((0.0, 50.0), (5.0, 75.0), (10.0, 100.0)):
        array.add(pair(x, y))
    made = curve(array, array)
    return {
        "charging": reasons((False, 0, 300, False), (True, 0, 300, False), (True, 0, 300, True)),
        "heat": reasons(*((True, level, 300, False) for level in (1, 2, 1, 0, 1))),
        "battery": reasons(*((True, None, tenths, False) for tenths in (409, 410, 390, 379, 390))),
        "free": reasons((False, 6, 500, True), wish=free),
        "pixels": list(map(float, made.pixels(120, 70, 10.0))),
        "lines": lines(),
        "ends": ends(),
    }


def lines() -> list[list[str]]:
    """What two screens were told, the second being the first after a rotation."""
    import jpype

    board = jpype.JClass("org.seedtune.demo.Lines")()
    told: list[list[str]] = [[], []]
    first, second = (
        jpype.JProxy(
            "org.seedtune.demo.Screen", dict={"say": lambda line, into=into: into.append(str(line))}
        )
        for into in told
    )
    board.say("before any")
    board.come(first)
    board.say("copying")
    board.leave(first)
    for line in ("copied", "the storage is full"):
        board.say(line)
    board.come(second)
    board.leave(first)  # late, as Android tells it
    board.say("whole")
    return told


def ends() -> list[bool]:
    """Whether it was learning, of each report, where somebody starts anew at every moment."""
    import jpype

    brain = {"call": lambda name, arguments: "done"}
    trainer = jpype.JClass("org.seedtune.demo.Trainer")(
        jpype.JProxy("org.seedtune.demo.Brain", dict=brain)
    )
    told: list[bool] = []
    show = {"show": lambda report: told.append(bool(report.getActive()))}
    trainer.watch(jpype.JProxy("org.seedtune.demo.Trainer$Watcher", dict=show))
    begun = 0
    while begun < 300:
        begun += bool(trainer.start("sort", 1.0))
    assert trainer.join(10_000)
    return told


if __name__ == "__main__":
    scenario, root, bundle = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    try:
        root.mkdir(parents=True, exist_ok=True)
        print(json.dumps(globals()[scenario](root, bundle, *sys.argv[4:])))
        jvm.leave()
    except BaseException:
        traceback.print_exc()
        jvm.leave(1)
