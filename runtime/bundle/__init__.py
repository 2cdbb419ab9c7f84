"""The bundle: everything that a device needs to tune and use one model.

``manifest`` has the schema and its checks, ``program`` and ``text_head`` what it says of these,
``parts`` the other files, ``checked_file`` the large ones, ``archive`` the one-file form, ``write``
the way to the disk.
"""

from .bundle import Bundle, open_bundle
from .manifest import Layer
from .program import DEFAULT_BOUNDS, Adapter, Bounds, Generation, Program
from .progress import Progress
from .text_head import TextFrame, TextHeadInfo, WordsPlace
from .write import Contents, pack_bundle, write_bundle

__all__ = [
    "DEFAULT_BOUNDS",
    "Adapter",
    "Bounds",
    "Bundle",
    "Contents",
    "Generation",
    "Layer",
    "Program",
    "Progress",
    "TextFrame",
    "TextHeadInfo",
    "WordsPlace",
    "open_bundle",
    "pack_bundle",
    "write_bundle",
]
