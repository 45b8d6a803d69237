"""An agent on the host's own processes, and a host connected to it through memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import ByteStream

from pyro_agent.server import Agent
from pyro_async.wire.codec import Hello
from pyro_async.wire.connection import Connection, Data, End, Message, Role, Stream, outcome
from pyro_async.wire.guest import STDERR, STDOUT, Attach, Configure, Configured, Exec, ExecExit, ExecStarted, Forget
from pyro_async.wire.resync import start_epoch
from tests.agent.host_system import HostSystem
from tests.support.memory_guest import memory_pipe

__all__ = ["Bench", "Host", "Result", "configure_request"]

_numbers = itertools.count()


def configure_request() -> Configure:
    return Configure(hostname="ws", machine_id="0" * 32, clock_ns=time.time_ns(), entropy=bytes(64))


class Result:
    """What came on one exec stream, so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.started: ExecStarted | None = None
        self.stdout = b""
        self.stderr = b""
        self.exit: ExecExit | None = None

    async def step(self, *, grant: bool = True) -> None:
        """Takes in one item."""
        item = await self.stream.receive()
        if isinstance(item, Data):
            if item.channel == STDOUT:
                self.stdout += item.data
            else:
                assert item.channel == STDERR
                self.stderr += item.data
            if grant:
                self.stream.grant(len(item.data))
        elif isinstance(item, Message):
            self.started = self.stream_started(item)
            self.stream.grant(len(item.payload))
        elif isinstance(item, End):
            self.exit = outcome(item, ExecExit)

    @staticmethod
    def stream_started(item: Message) -> ExecStarted:
        from pyro_async.wire.codec import decode

        return decode(item.payload, ExecStarted)

    async def until(self, text: bytes) -> None:
        """Takes in items until STDOUT contains ``text``."""
        while text not in self.stdout:
            await self.step()

    async def finish(self) -> ExecExit:
        """Takes in everything; returns how the command ended."""
        while self.exit is None:
            await self.step()
        return self.exit


class Host:
    """The host's end of one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def start(self, *argv: str, exec_id: str = "", stdin: bool = False, **options: object) -> Result:
        request = {"exec_id": exec_id or f"exec-{next(_numbers)}", "cwd": "/", "stdin": stdin, **options}
        return Result(self.connection.open(Exec.method, Exec(argv=list(argv), **request)))  # type: ignore[arg-type]

    def shell(self, script: str, **options: object) -> Result:
        return self.start("/bin/sh", "-c", script, **options)  # type: ignore[arg-type]

    def attach(self, exec_id: str, stdout_offset: int = 0, stderr_offset: int = 0) -> Result:
        request = Attach(exec_id=exec_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)
        return Result(self.connection.open(Attach.method, request))

    async def forget(self, *exec_ids: str) -> None:
        await self.connection.call(Forget.method, Forget(exec_ids=list(exec_ids)), type(None))


class Bench:
    """An agent and the means to connect to it, again and again."""

    def __init__(self, agent: Agent, system: HostSystem, tasks: anyio.abc.TaskGroup) -> None:
        self.agent = agent
        self.system = system
        self.tasks = tasks

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Host]:
        """One connection; leaving breaks it."""
        near, far = memory_pipe()
        self.tasks.start_soon(self.agent.serve, far)
        async with self.over(near) as host:
            yield host

    @asynccontextmanager
    async def over(self, near: ByteStream) -> AsyncIterator[Host]:
        connection = Connection(await start_epoch(near), role=Role.CLIENT, hello=Hello(software="test"))
        async with anyio.create_task_group() as tasks:
            await tasks.start(connection.run)
            try:
                yield Host(connection)
            finally:
                connection.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """An agent that is not configured yet."""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            system = HostSystem()
            yield Bench(Agent(system, tasks), system, tasks)
            with anyio.CancelScope(shield=True):
                await system.end_processes(0)
            tasks.cancel_scope.cancel()


@pytest.fixture
async def configured(bench: Bench) -> Bench:
    async with bench.connected() as host:
        await host.connection.call(Configure.method, configure_request(), Configured)
    return bench


@pytest.fixture
async def host(configured: Bench) -> AsyncIterator[Host]:
    async with configured.connected() as host:
        yield host
