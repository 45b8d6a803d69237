"""Looking at processes of the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["children", "running_with"]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def children(parent: int) -> set[int]:
    """The processes whose parent is ``parent``, zombies included."""
    found = set()
    for pid in _pids():
        with suppress(OSError):
            # The name in parentheses may hold spaces; behind it come state and parent.
            if int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1]) == parent:
                found.add(pid)
    return found


def running_with(text: str) -> list[int]:
    """The processes, zombies excepted, whose command line contains ``text``; never this one."""
    found = []
    for pid in _pids():
        with suppress(OSError):
            if pid != os.getpid() and text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
