"""What a VMM's process takes of the host, read from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyro_async.vmm.process import ProcessIdentity

__all__ = ["ProcessUsage", "process_usage"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessUsage(NamedTuple):
    """Resident and proportional set size in bytes, and CPU time in seconds since the process started."""

    rss: int
    pss: int | None
    cpu_seconds: float


def process_usage(identity: ProcessIdentity) -> ProcessUsage | None:
    """Reads the figures; None if the process has ended.

    Blocks for some milliseconds where the process has many pages: the kernel walks them for the proportional size.
    """
    directory = Path(f"/proc/{identity.pid}")
    try:
        # proc(5); counted behind the command's name, which may hold spaces: 12 and 13 are utime and stime in ticks.
        fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
        resident = int((directory / "statm").read_bytes().split()[1]) * _PAGE
        proportional = _proportional(directory)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not identity.is_alive():  # checked last: until then the pid may have come to mean another process
        return None
    return ProcessUsage(resident, proportional, (int(fields[11]) + int(fields[12])) / _TICKS)


def _proportional(directory: Path) -> int | None:
    with suppress(PermissionError):
        for line in (directory / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return None
