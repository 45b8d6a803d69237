"""Finding and ending the processes of VMs that nobody looks after.

Between the start of a process and the record of it lies a moment in which its starter can die. So each process carries
the directory of its VM in its environment: whoever owns that directory finds it, recorded or not.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from pyro_async.vmm.process import MARK, ProcessIdentity

__all__ = ["end_processes", "find_processes"]

_KILL_SECONDS: Final = 10.0
"""For the kernel to end a killed process; only a host that cannot finish a disk request takes as long."""


def find_processes(below: Path) -> dict[Path, list[ProcessIdentity]]:
    """The processes of VMs whose directories lie below ``below``, by the paths of these from there.

    Blocks for some milliseconds.
    """
    found: dict[Path, list[ProcessIdentity]] = {}
    wanted = f"{MARK}=".encode() + os.fsencode(below.resolve()) + b"/"
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with suppress(OSError):  # it ended, or belongs to somebody else
            for variable in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                if variable.startswith(wanted):
                    directory = Path(os.fsdecode(variable.removeprefix(wanted)))
                    found.setdefault(directory, []).append(ProcessIdentity.of(int(name)))
    return found


async def end_processes(identities: Iterable[ProcessIdentity]) -> list[ProcessIdentity]:
    """Kills processes and waits, bounded, until they are gone; returns those that were still there to be killed."""
    killed = []
    for identity in identities:
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            continue
        try:
            # Checked after the pidfd exists: from here on the pid cannot come to mean another process.
            if identity.is_alive():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                killed.append(identity)
                with anyio.move_on_after(_KILL_SECONDS):
                    await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
    return killed
