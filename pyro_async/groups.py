"""Task groups whose lone error leaves as itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

__all__ = ["plain_task_group"]


@asynccontextmanager
async def plain_task_group() -> AsyncIterator[TaskGroup]:
    """A task group for use inside one operation: if a task or the block fails, that error is raised, not a group.

    Of several errors the first is raised; the others were caused by the cancellation that followed it. A group that a
    task or the block itself raised stays what it is.
    """
    failed: BaseExceptionGroup[BaseException] | None = None
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        failed = group
    if failed is not None:
        raise failed.exceptions[0]
