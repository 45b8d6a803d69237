"""Deletes workspaces whose time is up.

A task of the root group: a workspace's own would have to wait for its own end.
"""

from __future__ import annotations

import logging
import math
from typing import Final

import anyio

from pyro_async.errors import PyroError, WorkspaceNotFound
from pyro_async.runtime.clock import Clock
from pyro_async.runtime.lifecycle import Phase
from pyro_async.runtime.log import event
from pyro_async.runtime.supervisor import Supervisor
from pyro_async.runtime.workspace import Workspace

__all__ = ["Lifetime"]

#: The longest sleep of the expiry's task: somebody may set the clock that it sleeps by.
RECHECK_SECONDS: Final = 30.0


class Lifetime:
    """Watches over all workspaces of a supervisor.

    Args:
        supervisor: ends them.
        clock: what time it is.
    """

    def __init__(self, supervisor: Supervisor, clock: Clock) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._changed = anyio.Event()
        self._ending: set[str] = set()

    async def run(self) -> None:
        """Runs until cancelled. What is due when it begins is deleted at once."""
        async with anyio.create_task_group() as tasks:
            while True:
                for workspace in self._due():
                    if workspace.record.workspace_id not in self._ending:
                        tasks.start_soon(self._delete, workspace, name=f"expire {workspace.record.workspace_id}")
                await self._until_next_expiry()

    def changed(self) -> None:
        """A workspace with an expiry was made."""
        self._changed.set()

    async def reap(self) -> list[str]:
        """Deletes what is due now, waits until it is gone and returns the ids."""
        due = self._due()
        async with anyio.create_task_group() as tasks:
            for workspace in due:
                tasks.start_soon(self._delete, workspace, name=f"expire {workspace.record.workspace_id}")
        return [workspace.record.workspace_id for workspace in due if workspace.record.phase is Phase.DELETING]

    # --- expiry ------------------------------------------------------------------------------------------------------

    def _due(self) -> list[Workspace]:
        """What has expired. One that is still being made is left to who makes it, until it is there."""
        now = self._clock.time()
        return [
            workspace
            for workspace in self._supervisor.workspaces()
            if _expiry(workspace) <= now and workspace.record.phase is not Phase.CREATING
        ]

    async def _until_next_expiry(self) -> None:
        now = self._clock.time()
        ahead = [_expiry(workspace) - now for workspace in self._supervisor.workspaces()]
        seconds = min((left for left in ahead if left > 0), default=RECHECK_SECONDS)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._alarm, min(seconds, RECHECK_SECONDS), name="alarm")
            await self._changed.wait()
            self._changed = anyio.Event()
            tasks.cancel_scope.cancel()

    async def _alarm(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._changed.set()

    async def _delete(self, workspace: Workspace) -> None:
        record = workspace.record
        self._ending.add(record.workspace_id)
        try:
            event("workspace expired", workspace_id=record.workspace_id, expires_at=record.expires_at)
            await self._supervisor.delete(workspace)
        except WorkspaceNotFound:
            pass  # somebody else was faster
        except PyroError as error:  # tried again at the next turn
            event("deleting failed", logging.ERROR, workspace_id=record.workspace_id, error=str(error))
        finally:
            self._ending.discard(record.workspace_id)


def _expiry(workspace: Workspace) -> float:
    return math.inf if workspace.record.expires_at is None else workspace.record.expires_at
