"""Signatures of Android's classes as Java sources, for a compiler without Android's SDK.

They are made from the type stubs that ``chaquopy-stubs-android`` has of API 36. Those leave out
what Python does not see, and three things are put back here: which classes are interfaces (their
methods have no parameter names), whether a returned ``int`` is Java's long, and type parameters.
"""

import ast
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from .downloads import fetch, kept

_PACKAGES = [
    "android",
    *(
        f"android.{name}"
        for name in (
            "app", "content", "content.pm", "content.res", "database", "graphics",
            "graphics.drawable", "net", "os",
            "provider", "text", "util", "view", "view.accessibility", "widget",
        )
    ),
    "org.json",
]  # fmt: skip
"""Those that the app uses, and what their classes are made of."""
_HAND_WRITTEN = Path(__file__).with_name("stubs")
"""Of Chaquopy's Java half, which has no stubs."""

_PRIMITIVES = {"int": "int", "bool": "boolean", "float": "float", "str": "String", "None": "void"}
_BOXES = {
    f"java.{kind}": kind[1:]
    for kind in ("jint", "jlong", "jfloat", "jdouble", "jbyte", "jshort", "jchar", "jboolean")
}
_ARRAYS = {f"java.chaquopy.JavaArrayJ{kind.capitalize()}": f"{kind}[]" for kind in _BOXES.values()}
_INTERFACES = {
    "java.lang.Runnable",
    "java.lang.Cloneable",
    "java.lang.CharSequence",
    "java.lang.Comparable",
    "java.lang.Iterable",
    "java.io.Closeable",
    "java.lang.AutoCloseable",
    "java.io.Serializable",
}
_RETURNS = {
    ("Cursor", "getLong"): "long",
    ("JSONObject", "getDouble"): "double",
    ("JSONArray", "getDouble"): "double",
    ("Activity", "findViewById"): "<T extends android.view.View> T",
    ("Context", "getSystemService"): "<T> T",
}
_ABSTRACT = ("Context", "Service")
_TYPED = {("Context", "getSystemService"): "Class<T> type"}


def android_signatures() -> Path:
    """Folder of Java sources in the cache, made if it is not there.

    Raises:
        DownloadError: see ``downloads.fetch``.
    """
    stubs = fetch("android-signatures")
    key = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(_HAND_WRITTEN.rglob("*.java")):
        key.update(file.read_bytes())

    def make(java: Path, work: Path) -> None:
        shutil.copytree(_HAND_WRITTEN, java, dirs_exist_ok=True)
        classes = [each for package in _PACKAGES for each in _classes(stubs, package)]
        interfaces = set(_INTERFACES)
        for package, node in classes:
            interfaces.update(_interfaces(package, node))
        for package, node in classes:
            folder = java / package.replace(".", "/")
            folder.mkdir(parents=True, exist_ok=True)
            text = "\n".join(_lines(node, package, interfaces, nested=False))
            (folder / f"{node.name}.java").write_text(f"package {package};\n{text}\n")

    return kept(f"signatures-{key.hexdigest()[:16]}", make)


def _classes(stubs: Path, package: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The package's classes, each with the package's name."""
    first, *rest = package.split(".")
    file = Path(stubs, f"{first}-stubs", *rest, "__init__.pyi")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield package, node


def _interfaces(outer: str, node: ast.ClassDef) -> Iterator[str]:
    """Full names of the class and those inside it that are interfaces, by the look of them."""
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    named = [arg.arg for each in methods for arg in each.args.posonlyargs[1:]]
    made = any(each.name == "__init__" for each in methods)
    if not made and named and all(arg.startswith("arg") for arg in named):
        yield f"{outer}.{node.name}"
    for inner in node.body:
        if isinstance(inner, ast.ClassDef):
            yield from _interfaces(f"{outer}.{node.name}", inner)


def _lines(node: ast.ClassDef, outer: str, interfaces: set[str], nested: bool) -> Iterator[str]:
    """Java source of a class; ``outer``: its package, or the class that it is in."""
    full = f"{outer}.{node.name}"
    package = ".".join(part for part in outer.split(".") if part[0].islower())
    bases = [_type(base) for base in node.bases]
    bases = [base for base in bases if base not in ("Object", "java.lang.Object")]

    def is_interface(name: str) -> bool:
        return name in interfaces or f"{package}.{name}" in interfaces

    interface = full in interfaces
    above = [base for base in bases if is_interface(base)]
    head = f"public {'static ' if nested else ''}{'abstract ' if node.name in _ABSTRACT else ''}"
    if interface:
        yield f"{head}interface {node.name}{_list(' extends ', above)} {{"
    else:
        parent = [base for base in bases if base not in above][:1]
        extended = _list(" extends ", parent) + _list(" implements ", above)
        yield f"{head}class {node.name}{extended} {{"
    for each in node.body:
        if isinstance(each, ast.AnnAssign):
            yield _field(each)
        elif isinstance(each, ast.FunctionDef):
            yield _method(each, node.name, interface)
        elif isinstance(each, ast.ClassDef):
            yield from _lines(each, full, interfaces, nested=True)
    yield "}"


def _field(node: ast.AnnAssign) -> str:
    kind = node.annotation
    static = False
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "typing.ClassVar":
        static, kind = True, kind.slice
    shown = _type(kind)
    name = ast.unparse(node.target)
    zero = {"String": '""', "boolean": "false"}.get(
        shown, "0" if shown in ("int", "float") else "null"
    )
    return f"public {'static final ' if static else ''}{shown} {name} = {zero};"


def _method(node: ast.FunctionDef, owner: str, interface: bool) -> str:
    given = [
        f"{_type(arg.annotation)} p{place}"
        for place, arg in enumerate(
            node.args.posonlyargs[1:] if not _static(node) else node.args.posonlyargs
        )
    ]
    if node.args.vararg is not None:
        given.append(f"{_type(node.args.vararg.annotation)}... rest")
    if node.name == "__init__":
        return f"public {owner}({', '.join(given)}) {{}}"
    place = (owner, node.name)
    typed = any(
        "Type[" in ast.unparse(arg.annotation) for arg in node.args.posonlyargs if arg.annotation
    )
    returned = _type(node.returns)
    if place in _RETURNS and (place not in _TYPED or typed):
        returned = _RETURNS[place]
        given = [_TYPED[place]] if place in _TYPED else given
    nullable = node.returns is not None and ast.unparse(node.returns).endswith("| None")
    mark = "@org.jetbrains.annotations.Nullable " if nullable else ""
    if interface:
        return f"{mark}{returned} {node.name}({', '.join(given)});"
    static = "static " if _static(node) else ""
    end = ";" if owner in _ABSTRACT and node.name == "onBind" else " { throw null; }"
    abstract = "abstract " if end == ";" else ""
    return f"{mark}public {abstract}{static}{returned} {node.name}({', '.join(given)}){end}"


def _type(node: ast.expr | None) -> str:
    """Java's name of a type; type arguments are left out."""
    if node is None:
        return "Object"
    text = ast.unparse(node)
    parts = [part.strip() for part in text.split("|")]
    boxed = [_BOXES[part] for part in parts if part in _BOXES]
    if boxed:
        return boxed[0]
    parts = [part for part in parts if part != "None"] or ["None"]
    if "java.lang.String" in parts and "java.lang.Object" not in parts:
        return "String"
    if len(parts) > 1 and not text.count("["):
        return "Object"
    name = parts[0].split("[")[0]
    if name == "typing.Type":
        return "Class"
    if name == "java.chaquopy.JavaArray":
        inner = node if isinstance(node, ast.Subscript) else None
        if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Subscript):
            inner = node.left
        return _type(inner.slice) + "[]" if inner is not None else "Object[]"
    if name in _ARRAYS:
        return _ARRAYS[name]
    if name in _PRIMITIVES:
        return _PRIMITIVES[name]
    if name.startswith("_") or name.startswith("typing."):
        return "Object"  # a type parameter
    return name


def _static(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)


def _list(word: str, names: list[str]) -> str:
    return f"{word}{', '.join(names)}" if names else ""
