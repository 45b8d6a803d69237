"""How the work of this package tells that it goes on."""

from __future__ import annotations

from collections.abc import Callable

from pyro_async.operations import Progress

__all__ = ["Progress", "Report", "silent"]

Report = Callable[[Progress], None]
"""Called from the event loop's thread with every step; must not block."""


def silent(progress: Progress) -> None:
    """A :data:`Report` for callers that want none."""
