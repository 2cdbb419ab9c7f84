"""Chaquopy's ``java`` module as far as the app uses it, over JPype. Stands on the path only here.

On a phone the module of that name is Chaquopy's own, inside a running JVM. Here ``rehearsal.jvm``
starts one.
"""

from typing import Any

import jpype

jlong, jfloat = jpype.JLong, jpype.JFloat


def jclass(name: str) -> Any:
    """A Java class by its full name."""
    return jpype.JClass(name)


def jarray(element: Any) -> Any:
    """The array class of an element type."""
    return jpype.JArray(element)
