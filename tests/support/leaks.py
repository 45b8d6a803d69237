"""What a test may leave behind: nothing. Looks at this process from outside, through /proc."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.processes import children

#: How long what is ending may take to be gone: threads of a closed event loop, children already killed.
_SETTLE_SECONDS = 3.0
#: Threads that belong to no test: trio keeps its idle workers for a while.
_POOLED = ("Trio thread", "trio-thread")


class Footprint(NamedTuple):
    """The resources this process holds."""

    descriptors: frozenset[str]
    threads: frozenset[int]
    children: frozenset[int]

    @classmethod
    def now(cls) -> Self:
        threads = {thread.ident or 0 for thread in threading.enumerate() if not thread.name.startswith(_POOLED)}
        return cls(frozenset(_descriptors()), frozenset(threads), frozenset(children()))

    def leaked(self) -> list[str]:
        """What is held now and was not then, once everything that is ending has ended."""
        return settled(self._more)

    def _more(self) -> list[str]:
        now = Footprint.now()
        return [
            *sorted(now.descriptors - self.descriptors),
            *(f"thread {ident}" for ident in now.threads - self.threads),
            *(f"child {pid}: {_command(pid)}" for pid in now.children - self.children),
        ]


def settled(look: Callable[[], list[str]]) -> list[str]:
    """What is still found once everything that is ending has had the time to end."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    return found


def _descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(entry)
            if not target.startswith(("/proc/", "/dev/")):
                found.add(f"descriptor {entry.name}: {target}")
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "gone"


def mount_points() -> set[str]:
    """Mount points of this mount namespace."""
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
