"""The first file system of a machine: a cpio archive in memory (format ``newc``, as the kernel
documents it in ``Documentation/driver-api/early-userspace/buffer-format.rst``)."""

import stat
from collections.abc import Mapping

_TRAILER = "TRAILER!!!"


def pack_initramfs(
    files: Mapping[str, tuple[bytes, bool]], folders: list[str], links: Mapping[str, str]
) -> bytes:
    """Archive for ``qemu -initrd``.

    Args:
        files: path without leading slash to content and whether it can be executed.
        folders: paths; parents first.
        links: path to target.
    """
    parts = [_entry(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    parts += [_entry(name, stat.S_IFLNK | 0o777, to.encode()) for name, to in links.items()]
    for name, (content, executable) in files.items():
        parts.append(_entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content))
    return b"".join([*parts, _entry(_TRAILER, 0, b"")])


def _entry(name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    # Inode 0 is safe: the kernel joins hard links only where an entry has more than one link.
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + path) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
