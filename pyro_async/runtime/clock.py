"""Time, as the runtime sees it: the seam between the host's clocks and the tests' stand-in for them."""

from __future__ import annotations

import time
from typing import Protocol

import anyio

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Two clocks and a way to wait."""

    def time(self) -> float:
        """Seconds since the epoch. Somebody may set this clock, so it may jump, either way."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment. Never jumps, and stands still while the host is suspended."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits, by the monotonic clock."""
        ...


class SystemClock:
    """The host's."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
