"""The agent: serves the host, one connection at a time, and holds every command across connections."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import ByteStream, TaskGroup

from pyro_agent.execution import Execution
from pyro_agent.system import System
from pyro_async import __version__
from pyro_async.errors import ExecNotFound, LinkLost, ProtocolError, PyroError, UnknownOperation, WrongState
from pyro_async.wire.codec import Hello, Request, decode
from pyro_async.wire.connection import Connection, Role, Stream
from pyro_async.wire.guest import (
    Attach,
    Configure,
    Configured,
    Exec,
    ExecExit,
    Forget,
    Running,
    RunningExec,
    Shutdown,
    Stats,
    StatsResult,
)
from pyro_async.wire.resync import accept_epoch

__all__ = ["Agent"]

#: Ended commands that the host does not acknowledge are dropped, oldest first, above this number and this much output;
#: but never one whose exit no connection has taken.
_KEPT_COUNT: Final = 1024
_KEPT_BYTES: Final = 8 * 1024 * 1024
#: How long a shutdown waits for the host to take in exits, and then the answer, in seconds.
_FAREWELL_GRACE: Final = 1.0


class Agent:
    """Runs commands for the host.

    Args:
        system: the machine.
        tasks: owns the running commands; outlives every connection.
    """

    def __init__(self, system: System, tasks: TaskGroup) -> None:
        self._system = system
        self._tasks = tasks
        self._executions: dict[str, Execution] = {}
        self._delivered: dict[str, int] = {}  # output still held by commands whose exit was handed over
        self._delivered_bytes = 0
        self._dropped: set[str] = set()  # without the host's word; they must not be run again
        self._connection: Connection | None = None
        self._generation = 0
        self._nonce = os.urandom(16)
        self._configured = False
        self._stopping = False
        self._sealed = anyio.Event()
        self._answered = anyio.Event()
        self._methods: dict[str, Callable[[Stream, Request], Awaitable[object]]] = {
            Exec.method: self._exec,
            Attach.method: self._attach,
            Running.method: self._running,
            Forget.method: self._forget,
            Configure.method: self._configure,
            Shutdown.method: self._shutdown,
            Stats.method: self._stats,
        }

    async def serve(self, stream: ByteStream, already: bytes = b"") -> bytes:
        """Serves one connection until it ends; the newest replaces any other.

        Args:
            stream: bytes from and to the host.
            already: what an earlier call over the same channel returned.

        Returns:
            Bytes received that belong to the next connection, on a channel that has no connections of its own.
        """
        try:
            positioned = await accept_epoch(stream, already)
        except LinkLost:
            return b""
        if self._connection is not None:
            self._connection.close()
        hello = Hello(software=f"pyro-agent {__version__}", nonce=self._nonce, generation=self._generation)
        self._generation += 1
        connection = self._connection = Connection(positioned, role=Role.SERVER, hello=hello, handler=self._handle)
        try:
            await connection.run()
            failure = connection.failure
        except PyroError as error:
            failure = error
        return connection.unparsed() if isinstance(failure, ProtocolError) else b""

    async def _handle(self, stream: Stream, request: Request) -> object:
        method = self._methods.get(request.method)
        if method is None:
            raise UnknownOperation(f"the agent knows no method {request.method!r}")
        return await method(stream, request)

    async def _exec(self, stream: Stream, request: Request) -> ExecExit:
        params = decode(request.params, Exec)
        execution = self._executions.get(params.exec_id)
        if execution is None:
            if params.exec_id in self._dropped:
                raise ExecNotFound(f"the agent no longer holds command {params.exec_id!r}, which has ended")
            if self._stopping or not self._configured:
                raise WrongState("the guest is shutting down" if self._stopping else "the guest is not configured yet")
            execution = Execution(params, self._system)
            self._executions[params.exec_id] = execution
            self._tasks.start_soon(execution.run, name=f"exec {params.exec_id}")
        return await self._serve_execution(execution, stream)

    async def _attach(self, stream: Stream, request: Request) -> ExecExit:
        params = decode(request.params, Attach)
        execution = self._executions.get(params.exec_id)
        if execution is None:
            raise ExecNotFound(f"the agent holds no command {params.exec_id!r}")
        return await self._serve_execution(execution, stream, params.stdout_offset, params.stderr_offset)

    async def _running(self, stream: Stream, request: Request) -> list[RunningExec]:
        return [
            RunningExec(exec_id=execution.exec_id, pid=execution.pid, stdin_offset=execution.stdin_offset)
            for execution in self._executions.values()
        ]

    async def _forget(self, stream: Stream, request: Request) -> None:
        for exec_id in decode(request.params, Forget).exec_ids:
            execution = self._executions.get(exec_id)
            if execution is not None and execution.exit is not None:
                self._drop(exec_id)

    async def _configure(self, stream: Stream, request: Request) -> Configured:
        began = time.monotonic()
        self._system.configure(decode(request.params, Configure))
        self._configured = True
        return Configured(kernel=os.uname().release, seconds=time.monotonic() - began)

    async def _stats(self, stream: Stream, request: Request) -> StatsResult:
        return self._system.stats()

    async def _shutdown(self, stream: Stream, request: Request) -> None:
        params = decode(request.params, Shutdown)
        if not self._stopping:
            self._stopping = True
            # In the agent's own group: the host's going away must not stop it half way.
            self._tasks.start_soon(self._stop, params.grace_seconds, name="shutdown")
        await self._sealed.wait()
        stream.end()
        if self._connection is not None:
            await self._connection.flush()
        self._answered.set()

    async def _stop(self, grace_seconds: float) -> None:
        """Last in, first out: commands, their exits' way to the host, the disk, the answer, the power."""
        await self._system.end_processes(grace_seconds)
        with anyio.move_on_after(_FAREWELL_GRACE):
            for execution in [held for held in self._executions.values() if held.attached]:
                await execution.wait_over()
        self._system.seal_disk()
        self._sealed.set()
        with anyio.move_on_after(_FAREWELL_GRACE):
            await self._answered.wait()
        self._system.power_off()

    async def _serve_execution(self, execution: Execution, stream: Stream, *offsets: int) -> ExecExit:
        ended = await execution.attach(stream, *offsets)
        self._drop(execution.exec_id)
        self._executions[execution.exec_id] = execution
        self._delivered[execution.exec_id] = execution.retained
        self._delivered_bytes += execution.retained
        while len(self._delivered) > _KEPT_COUNT or self._delivered_bytes > _KEPT_BYTES:
            oldest = next(iter(self._delivered))
            self._drop(oldest)
            self._dropped.add(oldest)
        return ended

    def _drop(self, exec_id: str) -> None:
        del self._executions[exec_id]
        self._delivered_bytes -= self._delivered.pop(exec_id, 0)
