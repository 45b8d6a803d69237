"""Stops a workspace that nobody uses. Its disk stays, and `start` brings it back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from pyro_async.errors import PyroError
from pyro_async.runtime.clock import Clock
from pyro_async.runtime.log import event
from pyro_async.runtime.workspace import Workspace

__all__ = ["IDLE_CPU", "stop_when_idle"]

#: A guest that uses less than this part of one CPU is idle; its kernel and its agent take below a hundredth.
IDLE_CPU: Final = 0.05
#: How often an unused workspace is looked at: this part of its idle time, within these bounds in seconds.
_LOOK_PART: Final = 0.25
_LOOK_BOUNDS: Final = (1.0, 30.0)

#: Stops a workspace unless the condition no longer holds when its turn comes.
Stop = Callable[[Workspace, Callable[[], bool]], Awaitable[None]]


class _Look(NamedTuple):
    """What a look at the guest saw: when, and how much CPU time it had used by then."""

    at: float
    cpu_seconds: float

    def idle_since(self, earlier: _Look) -> bool:
        return self.cpu_seconds - earlier.cpu_seconds < IDLE_CPU * (self.at - earlier.at)


async def stop_when_idle(workspace: Workspace, clock: Clock, stop: Stop) -> None:
    """Runs beside the workspace's machine; returns at once if the workspace has no idle time.

    The guest itself is asked only while the host's side is quiet. One that works, or is too busy to answer, is not
    idle.
    """
    limit = workspace.record.idle_stop_seconds
    if limit is None:
        return
    low, high = _LOOK_BOUNDS
    pause = min(max(limit * _LOOK_PART, low), high)
    earlier: _Look | None = None
    while True:
        await clock.sleep(pause)
        if workspace.activity.quiet_seconds < pause:
            earlier = None
            continue
        look = await _look(workspace, clock)
        if look is None or (earlier is not None and not look.idle_since(earlier)):
            workspace.activity.touch()
        earlier = look
        if workspace.activity.quiet_seconds >= limit:
            await _stop(workspace, limit, stop)


async def _look(workspace: Workspace, clock: Clock) -> _Look | None:
    stats = await workspace.stats()
    return None if stats is None else _Look(clock.monotonic(), stats.cpu_seconds)


async def _stop(workspace: Workspace, limit: float, stop: Stop) -> None:
    event("workspace idle", workspace_id=workspace.record.workspace_id, idle_stop_seconds=limit)
    try:
        await stop(workspace, lambda: workspace.activity.quiet_seconds >= limit)
    except PyroError as error:  # it has ended on its own, or the store failed: the next look tells
        event("idle stop failed", logging.WARNING, workspace_id=workspace.record.workspace_id, error=str(error))
