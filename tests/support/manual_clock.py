"""A clock that stands still until a test moves it."""

from __future__ import annotations

import anyio
from anyio.lowlevel import checkpoint

__all__ = ["ManualClock"]


class ManualClock:
    """See :class:`pyro_async.runtime.clock.Clock`."""

    def __init__(self, time: float = 1_800_000_000.0) -> None:
        self._time = time
        self._monotonic = 1000.0
        self._sleepers: dict[anyio.Event, float] = {}
        self._asleep = anyio.Event()

    def time(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await checkpoint()
            return
        woken = anyio.Event()
        self._sleepers[woken] = self._monotonic + seconds
        self._asleep.set()
        self._asleep = anyio.Event()
        try:
            await woken.wait()
        finally:
            self._sleepers.pop(woken, None)

    async def until_asleep(self, sleepers: int) -> None:
        """Waits until so many tasks sleep."""
        while len(self._sleepers) < sleepers:
            await self._asleep.wait()

    async def advance(self, seconds: float) -> None:
        """Lets time pass, in steps from one sleeper's end to the next; each is asleep again, or gone, at the end."""
        target = self._monotonic + seconds
        while due := [moment for moment in self._sleepers.values() if moment <= target]:
            self._move(min(due) - self._monotonic)
            for sleeper, moment in list(self._sleepers.items()):
                if moment <= self._monotonic:
                    del self._sleepers[sleeper]
                    sleeper.set()
            await anyio.wait_all_tasks_blocked()
        self._move(target - self._monotonic)

    def set_time(self, offset: float) -> None:
        """Somebody sets the host's clock; nothing sleeps any shorter for it."""
        self._time += offset

    def _move(self, seconds: float) -> None:
        self._monotonic += seconds
        self._time += seconds
