"""What the machine uses at this moment: a few files below /proc and one statvfs."""

from __future__ import annotations

import os
from typing import Final

from pyro_async.wire.guest import StatsResult

__all__ = ["read_stats"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Of the first line of /proc/stat, proc(5): the columns in which a CPU has nothing to do.
_IDLE_COLUMNS: Final = (3, 4)  # idle, iowait
#: Columns from here on are part of earlier ones: guest time counts as user time too.
_COLUMNS: Final = 8


def read_stats(disk: str) -> StatsResult:
    """Reads the figures; blocks for less than a millisecond.

    Args:
        disk: a directory on the workspace's disk.
    """
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    memory = _memory()
    status = os.statvfs(disk)
    return StatsResult(
        uptime_seconds=uptime,
        cpu_seconds=_cpu_seconds(),
        mem_total=memory["MemTotal"],
        mem_available=memory["MemAvailable"],
        disk_total=status.f_blocks * status.f_frsize,
        disk_free=status.f_bavail * status.f_frsize,
        process_count=sum(name.isdecimal() for name in os.listdir("/proc")),
    )


def _cpu_seconds() -> float:
    with open("/proc/stat") as file:
        ticks = [int(column) for column in file.readline().split()[1 : 1 + _COLUMNS]]
    return sum(ticks[column] for column in range(len(ticks)) if column not in _IDLE_COLUMNS) / _TICKS


def _memory() -> dict[str, int]:
    wanted = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                wanted[name] = int(value.split()[0]) * 1024
                if len(wanted) == 2:
                    break
    return wanted
