"""The guest as a process of its own: the real agent behind a unix socket, in a PID namespace. For tests only.

Like a VMM it outlives the daemon that started it, and everything in it dies with it; unlike one it starts at once.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import ByteStream

from pyro_agent.server import Agent
from pyro_async.errors import LinkLost, WorkspaceFailed
from pyro_async.faults import fault_point
from pyro_async.vmm.driver import Machine, MachineExit, MachineSpec
from pyro_async.vmm.process import Process, ProcessIdentity
from pyro_async.vmm.sockets import connect_when_ready, remove_stale
from tests.support.memory_guest import MemorySystem

__all__ = ["ProcessDriver", "serve"]

_SOCKET: Final = "agent.sock"
_STDERR: Final = "guest.stderr"
#: There when the guest has powered itself off: an adopter cannot see the exit status of another's child.
_POWERED_OFF: Final = "powered-off"
_NAMESPACE: Final = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


class ProcessMachine:
    """A machine that is a process."""

    acceleration = "none"
    paused_for = None

    def __init__(self, spec: MachineSpec, process: Process) -> None:
        self._spec = spec
        self._process = process
        self._released = False

    @property
    def identity(self) -> ProcessIdentity:
        return self._process.identity

    async def connect(self) -> ByteStream:
        stream = await connect_when_ready(self._spec.directory, _SOCKET, self._process.poll)
        if stream is None:
            raise LinkLost("the guest has ended")
        return stream

    async def wait(self) -> MachineExit:
        await self._process.wait()
        clean = (self._spec.directory / _POWERED_OFF).exists()
        reason = "powered off" if clean else f"killed: {self._process.read_stderr()}"
        return MachineExit(returncode=self._process.returncode, reason=reason, clean=clean)

    async def power_off(self, grace_seconds: float) -> MachineExit:
        with anyio.move_on_after(grace_seconds):
            return await self.wait()
        return await self.kill()

    async def kill(self) -> MachineExit:
        self._process.kill()
        return await self.wait()

    def console_tail(self, max_bytes: int = 8192) -> str:
        return ""

    def leave_running(self) -> None:
        self._released = True

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[Machine]:
        """Ends the process on leaving unless it was left running."""
        try:
            yield self
        finally:
            if not self._released:
                with anyio.CancelScope(shield=True):
                    await self.kill()
            self._process.close()


class ProcessDriver:
    """Runs guests that are processes."""

    name = "process"
    acceleration = "none"
    binary = Path(sys.executable)

    @asynccontextmanager
    async def start(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        remove_stale(spec.directory, _SOCKET, _POWERED_OFF)
        code = f"import sys; sys.path[:0] = {sys.path!r}; from tests.support.process_guest import serve; serve()"
        argv = [*_NAMESPACE, sys.executable, "-c", code, str(spec.upper.with_suffix(""))]
        process = await Process.spawn(argv, cwd=spec.directory, stderr=_STDERR)
        fault_point("machine.spawned")
        async with ProcessMachine(spec, process).attended() as machine:
            yield machine

    @asynccontextmanager
    async def adopt(self, spec: MachineSpec, identity: ProcessIdentity) -> AsyncIterator[Machine]:
        try:
            process = Process.adopt(identity, cwd=spec.directory, stderr=_STDERR)
        except (ProcessLookupError, FileNotFoundError) as error:
            raise WorkspaceFailed("the VM is gone") from error
        async with ProcessMachine(spec, process).attended() as machine:
            yield machine


def serve() -> None:
    """The guest's side: serves the agent in the current directory until it powers off."""
    anyio.run(_serve, Path(sys.argv[1]))


async def _serve(workspace: Path) -> None:
    async with anyio.create_task_group() as tasks:
        system = MemorySystem(workspace)
        agent = Agent(system, tasks)
        async with await anyio.create_unix_listener(_SOCKET) as listener:
            tasks.start_soon(listener.serve, agent.serve)
            await system.powered_off.wait()
            Path(_POWERED_OFF).touch()
            tasks.cancel_scope.cancel()
