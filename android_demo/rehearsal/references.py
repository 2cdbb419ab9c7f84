"""What compiled classes use of Android, read from class files (JVM specification, chapter 4)."""

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Member = tuple[str, str, str]
"""Class, name and descriptor, as class files write them; only the class for a class itself."""

_SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}
"""Bytes of an entry of the constant pool behind its tag."""


@dataclass(frozen=True)
class ClassFile:
    """One class."""

    name: str
    above: tuple[str, ...]
    """Superclass and interfaces."""
    members: frozenset[tuple[str, str]]
    """Name and descriptor of its own fields and methods."""
    uses: frozenset[Member]
    """Fields and methods that its code names, and classes, those with empty names."""


def read_class(data: bytes) -> ClassFile:
    """Parse a class file."""
    count = int.from_bytes(data[8:10])
    pool: dict[int, tuple[int, bytes]] = {}
    at, number = 10, 1
    while number < count:
        tag = data[at]
        size = 2 + int.from_bytes(data[at + 1 : at + 3]) if tag == 1 else _SIZES[tag]
        start = at + 3 if tag == 1 else at + 1
        pool[number] = (tag, data[start : at + 1 + size])
        at += 1 + size
        number += 2 if tag in (5, 6) else 1

    def text(index: int) -> str:
        return pool[index][1].decode(errors="replace")

    def class_name(index: int) -> str:
        return text(int.from_bytes(pool[index][1]))

    _, this, parent, interfaces = struct.unpack_from(">4H", data, at)
    above = [parent, *struct.unpack_from(f">{interfaces}H", data, at + 8)]
    at += 8 + 2 * interfaces
    members: set[tuple[str, str]] = set()
    for _ in ("fields", "methods"):
        (count,) = struct.unpack_from(">H", data, at)
        at += 2
        for _ in range(count):
            _, name, kind, attributes = struct.unpack_from(">4H", data, at)
            members.add((text(name), text(kind)))
            at += 8
            for _ in range(attributes):
                at += 6 + int.from_bytes(data[at + 2 : at + 6])
    uses: set[Member] = set()
    for tag, body in pool.values():
        if tag == 7 and not text(int.from_bytes(body)).startswith("["):
            uses.add((text(int.from_bytes(body)), "", ""))
        elif tag in (9, 10, 11):
            owner, pair = struct.unpack(">2H", body)
            name, kind = struct.unpack(">2H", pool[pair][1])
            uses.add((class_name(owner), text(name), text(kind)))
    named = tuple(class_name(index) for index in above if index)
    return ClassFile(class_name(this), named, frozenset(members), frozenset(uses))


class Classes:
    """Classes by name, from jars and folders, read when asked for."""

    def __init__(self, *places: Path) -> None:
        self._jars = [zipfile.ZipFile(place) for place in places if place.is_file()]
        self._folders = [place for place in places if place.is_dir()]
        self._known: dict[str, ClassFile | None] = {}

    def find(self, name: str) -> ClassFile | None:
        if name not in self._known:
            self._known[name] = self._read(f"{name}.class")
        return self._known[name]

    def _read(self, file: str) -> ClassFile | None:
        for folder in self._folders:
            if (folder / file).is_file():
                return read_class((folder / file).read_bytes())
        for jar in self._jars:
            if file in jar.namelist():
                return read_class(jar.read(file))
        return None

    def lineage(self, name: str) -> Iterator[str]:
        """The class and all above it, as far as they are known."""
        yield name
        found = self.find(name)
        for above in found.above if found else ():
            yield from self.lineage(above)


def newer_than(platform: Path, app: Path) -> set[str]:
    """What the classes in the folder ``app`` use of Android that ``platform`` (its jar) lacks.

    Each as ``android.os.PowerManager.getCurrentThermalStatus``, or a class alone.
    """
    classes = Classes(app, platform)
    missing: set[str] = set()
    for file in app.rglob("*.class"):
        for owner, name, kind in read_class(file.read_bytes()).uses:
            lineage = list(classes.lineage(owner))
            android = next((each for each in lineage if each.startswith("android/")), None)
            if android is None:
                continue
            found = [each for each in map(classes.find, lineage) if each is not None]
            if not name:
                if classes.find(android) is None:
                    missing.add(android.replace("/", "."))
            elif not any((name, kind) in each.members for each in found):
                missing.add(f"{android.replace('/', '.')}.{name}")
    return missing
