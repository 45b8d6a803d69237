"""Noticing that the host's clock jumped or that the host slept, which its guests cannot know.

No portable notification tells of either, so three clocks are compared once a second: the monotonic one stands still
while the host is suspended, the boot-time one does not, and the wall clock can be set. A process that was stopped finds
that its second took longer.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import anyio

__all__ = ["ClockJump", "Clocks", "compare", "read_clocks", "watch_clock"]

#: Between two looks.
INTERVAL_SECONDS: Final = 1.0
#: A difference below this is the work of NTP, or of a busy host.
TOLERANCE_SECONDS: Final = 0.5
#: A look that comes this much late means that this process, and perhaps its guests too, stood still.
STALL_SECONDS: Final = 2.0


class Clocks(NamedTuple):
    """The host's clocks at one moment, in seconds."""

    monotonic: float
    boottime: float
    wall: float


class ClockJump(NamedTuple):
    """What happened, ``set``, ``suspended`` or ``stopped``, and by how many seconds."""

    cause: str
    seconds: float


def read_clocks() -> Clocks:
    """The clocks now."""
    return Clocks(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def compare(before: Clocks, after: Clocks, expected: float = INTERVAL_SECONDS) -> ClockJump | None:
    """What happened between two looks that should lie ``expected`` seconds apart, if anything did."""
    passed = after.monotonic - before.monotonic
    asleep = after.boottime - before.boottime - passed
    if asleep > TOLERANCE_SECONDS:
        return ClockJump("suspended", round(asleep, 3))
    jumped = after.wall - before.wall - passed
    if abs(jumped) > TOLERANCE_SECONDS:
        return ClockJump("set", round(jumped, 3))
    if passed - expected > STALL_SECONDS:
        return ClockJump("stopped", round(passed - expected, 3))
    return None


async def watch_clock(
    on_jump: Callable[[ClockJump], Awaitable[None]], *, read: Callable[[], Clocks] = read_clocks
) -> None:
    """Calls ``on_jump`` after each jump, for ever.

    Args:
        on_jump: delays the next look while it runs.
        read: reads the clocks.
    """
    while True:
        before = read()
        await anyio.sleep(INTERVAL_SECONDS)
        if jump := compare(before, read()):
            await on_jump(jump)
