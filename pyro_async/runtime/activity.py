"""Whether a workspace is in use, and since when it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro_async.runtime.clock import Clock

__all__ = ["Activity"]


class Activity:
    """What keeps a workspace awake.

    Measured by the monotonic clock: a workspace must not be stopped because somebody set the host's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holds = 0
        self._quiet_since = clock.monotonic()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Around whatever uses the workspace for as long as it lasts: a command, a connection."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self.touch()

    def touch(self) -> None:
        """Something used the workspace just now."""
        self._quiet_since = self._clock.monotonic()

    @property
    def quiet_seconds(self) -> float:
        """For how long nothing has used the workspace; 0 while something does."""
        return 0.0 if self._holds else self._clock.monotonic() - self._quiet_since
