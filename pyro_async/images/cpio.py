"""Writer for the newc cpio format of an initramfs (Linux Documentation/driver-api/early-userspace/buffer-format)."""

from __future__ import annotations

import stat

__all__ = ["Archive"]


class Archive:
    """Collects entries, all owned by root with a fixed time, so that equal input gives equal bytes.

    Parents must be added before what they contain: the kernel unpacks in order.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._add(path, stat.S_IFDIR | mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def getvalue(self) -> bytes:
        """Returns the whole archive, with its trailer, padded to 512 bytes."""
        data = b"".join([*self._parts, _entry("TRAILER!!!", 0, 0, b"", (0, 0))])
        return data + bytes(-len(data) % 512)

    def _add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._parts.append(_entry(path.strip("/"), self._inode, mode, content, device))


def _entry(name: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
