"""The one client that all calls of a server share."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from pyro_async.client import AsyncPyro
from pyro_async.errors import LinkLost

__all__ = ["Connect", "SharedClient", "shared_client"]

#: Makes a client, to be entered; entering it starts the daemon if none runs.
Connect = Callable[[], AbstractAsyncContextManager[AsyncPyro]]

_log: Final = logging.getLogger(__name__)


class _Held:
    """An open client, how many calls use it, and whether it is to be closed after the last of them."""

    def __init__(self, client: AsyncPyro) -> None:
        self.client = client
        self.users = 0
        self.retired = False
        self.unused = anyio.Event()

    def settle(self) -> None:
        if self.retired and not self.users:
            self.unused.set()


class SharedClient:
    """Opened by the first call that needs it; after its connection broke the next call opens another.

    A client must be left in the task that entered it, so each lives in a task of its own.
    """

    def __init__(self, connect: Connect, tasks: TaskGroup) -> None:
        self._connect = connect
        self._tasks = tasks
        self._opening = anyio.Lock()
        self._held: _Held | None = None

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[AsyncPyro]:
        """Lends the client for one call.

        Raises:
            PyroError: it cannot be opened.
        """
        async with self._opening:
            if self._held is None:
                self._held = await self._tasks.start(self._hold, name="client")
            held = self._held
            held.users += 1
        try:
            yield held.client
        except LinkLost:
            self._retire(held)
            raise
        finally:
            held.users -= 1
            held.settle()

    def close(self) -> None:
        """Closes the client after the calls that use it."""
        if self._held is not None:
            self._retire(self._held)

    def _retire(self, held: _Held) -> None:
        if self._held is held:
            self._held = None
        held.retired = True
        held.settle()

    async def _hold(self, *, task_status: TaskStatus[_Held]) -> None:
        held = None
        try:
            async with self._connect() as client:
                held = _Held(client)
                task_status.started(held)
                await held.unused.wait()
        except Exception:
            if held is None:
                raise  # to the call that wanted it
            _log.exception("closing a client failed")


@asynccontextmanager
async def shared_client(connect: Connect) -> AsyncIterator[SharedClient]:
    """Owns a :class:`SharedClient`."""
    async with anyio.create_task_group() as tasks:
        client = SharedClient(connect, tasks)
        yield client
        client.close()
