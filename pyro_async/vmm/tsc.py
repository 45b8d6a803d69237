"""The frequency of the host's time-stamp counter, which a guest under TCG reads as its own.

Such a guest has no reference to measure it by but the emulated PIT, and on a busy host that fails: Linux then has no
clock source and stands still in its first second. So it is told.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from functools import cache

__all__ = ["host_tsc_khz"]

_INTERVAL_SECONDS = 0.05
_ATTEMPTS = 16
_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret


@cache
def host_tsc_khz() -> int | None:
    """Measures the counter against the monotonic clock, to some parts in a million; None where that is impossible.

    Blocks for 50 ms at the first call.
    """
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that forbids memory both writable and executable
        return None
    code.write(_READ_TSC)
    entry = ctypes.c_char.from_buffer(code)
    read_tsc: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(entry))
    ticks_before, nanoseconds_before = _sample(read_tsc)
    time.sleep(_INTERVAL_SECONDS)
    ticks_after, nanoseconds_after = _sample(read_tsc)
    return round((ticks_after - ticks_before) * 1_000_000 / (nanoseconds_after - nanoseconds_before))


def _sample(read_tsc: Callable[[], int]) -> tuple[int, int]:
    """Counter and clock at one moment: of several attempts the one that was interrupted least."""
    attempts = []
    for _ in range(_ATTEMPTS):
        before = time.monotonic_ns()
        ticks = read_tsc()
        after = time.monotonic_ns()
        attempts.append((after - before, ticks, (before + after) // 2))
    _, ticks, nanoseconds = min(attempts)
    return ticks, nanoseconds
