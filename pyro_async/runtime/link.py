"""The connection to a workspace's guest, kept up for as long as its machine runs."""

from __future__ import annotations

from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from pyro_async.errors import GuestUnresponsive, LinkLost, ProtocolError
from pyro_async.groups import plain_task_group
from pyro_async.vmm.driver import Machine
from pyro_async.wire.codec import Hello
from pyro_async.wire.connection import Connection, Role
from pyro_async.wire.resync import start_epoch

__all__ = ["Link"]

#: How long one attempt to synchronise may take before it is made afresh: an agent that missed the break needs one.
_ATTEMPT_SECONDS: Final = 5.0
#: Pause between attempts, in which an agent that waits for the rest of a frame notices that nobody is there.
_PAUSE_SECONDS: Final = 0.05
#: How long a running guest may stay silent after its connection broke.
_RECONNECT_SECONDS: Final = 30.0


class Link:
    """Connects to the agent, and again whenever the connection breaks while the machine runs.

    Args:
        machine: the machine whose channel is used.
        hello: what to tell the agent about this host.
        nonce: the agent's nonce if it is known from an earlier process, else empty.
    """

    def __init__(self, machine: Machine, hello: Hello, nonce: bytes = b"") -> None:
        self._machine = machine
        self._hello = hello
        self._connection: Connection | None = None
        self._changed = anyio.Event()
        self._over = False
        self.nonce = nonce

    async def run(self, first_deadline: float, *, task_status: TaskStatus[Connection] = TASK_STATUS_IGNORED) -> None:
        """Keeps the link up; reports the first connection. Ends only by cancellation or by an error.

        Args:
            first_deadline: seconds the agent may take to answer for the first time.

        Raises:
            GuestUnresponsive: the agent does not answer.
            ProtocolError, VersionMismatch: the agent answers nonsense, or is not the one it was.
        """
        deadline, started = first_deadline, False
        while True:
            async with plain_task_group() as tasks:
                connection = await self._connect(tasks, deadline)
                self._check_identity(connection)
                self._connection = connection
                self._changed.set()
                self._changed = anyio.Event()
                if not started:
                    task_status.started(connection)
                    deadline, started = _RECONNECT_SECONDS, True
                failure = await connection.wait_down()
            self._connection = None
            if isinstance(failure, ProtocolError):
                raise failure

    def end(self) -> None:
        """Wakes those who still wait for a connection: none will come any more."""
        self._over = True
        self._changed.set()

    async def connection(self) -> Connection:
        """The live connection; waits for it while the link is being mended.

        Raises:
            LinkLost: it has ended.
        """
        while self._connection is None or self._connection.failure is not None:
            if self._over:
                raise LinkLost("the link to the guest has ended")
            await self._changed.wait()
        return self._connection

    def fail(self, error: ProtocolError) -> None:
        """Ends the link because the guest sent something that decodes but makes no sense."""
        if self._connection is not None:
            self._connection.close(error)

    async def _connect(self, tasks: TaskGroup, seconds: float) -> Connection:
        try:
            with anyio.fail_after(seconds):
                while True:
                    with anyio.move_on_after(_ATTEMPT_SECONDS):
                        try:
                            return await self._attempt(tasks)
                        except LinkLost:
                            pass  # the machine is about to exit, which cancels this task, or to accept
                    await anyio.sleep(_PAUSE_SECONDS)
        except TimeoutError:
            raise GuestUnresponsive(
                f"the guest's agent did not answer within {seconds:g} s",
                hint="the end of its console may tell why; more memory may help",
            ) from None

    async def _attempt(self, tasks: TaskGroup) -> Connection:
        stream = await self._machine.connect()
        try:
            connection = Connection(await start_epoch(stream), role=Role.CLIENT, hello=self._hello)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        await tasks.start(connection.run, name="connection")
        return connection

    def _check_identity(self, connection: Connection) -> None:
        nonce = connection.peer.nonce
        if self.nonce and nonce != self.nonce:
            raise ProtocolError("the guest's agent was replaced or restarted")
        self.nonce = nonce
