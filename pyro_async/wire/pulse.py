"""Waking whoever waits at this moment."""

from __future__ import annotations

import anyio

__all__ = ["Pulse"]


class Pulse:
    """Unlike an event it has no state: whoever waits checks first what it waits for, and after waking again.

    It costs next to nothing while nobody waits, which on the path of every frame is most of the time.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def wake(self) -> None:
        """Wakes all that wait now. Does not block."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Waits for the next :meth:`wake`."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
