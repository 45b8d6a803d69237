"""Looking at processes of the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["children", "running_with"]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def children() -> set[int]:
    """Our child processes, zombies included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found = set()
    for pid in _pids():
        with suppress(OSError):
            # The name in parentheses may hold spaces; behind it come state and parent.
            if int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
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
