"""The in-memory guest: the real agent over a memory stream, its commands processes of the host. For tests only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream, TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from pyro_agent.server import Agent
from pyro_agent.spawn import Command
from pyro_async.errors import EnvironmentNotFound, LinkLost, WorkspaceFailed
from pyro_async.images.store import EnvironmentImage, GuestImages
from pyro_async.operations import WORKSPACE_PATH, Environment, Pruned
from pyro_async.vmm.driver import Machine, MachineExit, MachineSpec
from pyro_async.vmm.process import ProcessIdentity
from tests.agent.host_system import HostSystem, HostTree

__all__ = ["MemoryDriver", "MemoryImages", "MemoryMachine", "MemoryStream", "Serve", "memory_pipe"]

Serve = Callable[[ByteStream], Coroutine[Any, Any, object]]


class MemoryStream(ByteStream):
    """One end of a byte stream in memory. Closing an end loses what is under way, if need be in mid frame."""

    def __init__(self, send: MemoryObjectSendStream[bytes], receive: MemoryObjectReceiveStream[bytes]) -> None:
        self._send, self._receive = send, receive
        self._held = b""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = self._held or await self._receive.receive()
        self._held = data[max_bytes:]
        return data[:max_bytes]

    async def send(self, item: bytes) -> None:
        await self._send.send(item)

    async def send_eof(self) -> None:
        self._send.close()

    async def aclose(self) -> None:
        self._held = b""
        self._send.close()
        self._receive.close()


class MemoryTree(HostTree):
    """A command's processes; the guest's /workspace is a directory of the host."""

    def __init__(self, workspace: Path) -> None:
        super().__init__()
        self._workspace = workspace

    def spawn(self, command: Command) -> int:
        cwd, environment = command.cwd, command.environment
        if cwd == WORKSPACE_PATH or cwd.startswith(f"{WORKSPACE_PATH}/"):
            cwd = f"{self._workspace}{cwd.removeprefix(WORKSPACE_PATH)}"
            environment = environment | {"PWD": cwd}
        return super().spawn(command._replace(cwd=cwd, environment=environment))


class MemorySystem(HostSystem):
    """The host, with a directory that stands for the upper disk: it lasts as long as that does."""

    def __init__(self, workspace: Path) -> None:
        super().__init__()
        self._workspace = workspace
        workspace.mkdir(parents=True, exist_ok=True)

    def tree(self) -> HostTree:
        tree = MemoryTree(self._workspace)
        self._trees.append(tree)
        return tree

    def leftovers(self) -> list[int]:
        """The processes of any command that still live."""
        return [pid for tree in self._trees for pid in tree.pids()]


def memory_pipe() -> tuple[MemoryStream, MemoryStream]:
    """Two connected byte streams."""
    left_send, right_receive = anyio.create_memory_object_stream[bytes](2)
    right_send, left_receive = anyio.create_memory_object_stream[bytes](2)
    return MemoryStream(left_send, left_receive), MemoryStream(right_send, right_receive)


class MemoryMachine:
    """A machine that is only an agent; ``die`` is what kill -9 of a VMM is to a real one."""

    acceleration = "none"
    paused_for = None

    def __init__(self, identity: ProcessIdentity, spec: MachineSpec, tasks: TaskGroup) -> None:
        self.identity = identity
        self.spec = spec
        self.system = MemorySystem(spec.upper.with_suffix(""))
        self.agent = Agent(self.system, tasks)
        #: Speaks for the guest on a new connection; None answers nothing.
        self.serve: Serve | None = self.agent.serve
        self.holder: MemoryHandle | None = None
        self.left_running = False
        self.connections = 0
        self.console = "in-memory guest: agent up\n"
        self._tasks = tasks
        self._exit: MachineExit | None = None
        self._exited = anyio.Event()
        self._streams: list[ByteStream] = []

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._exit is None

    async def connect(self) -> ByteStream:
        if self._exit is not None:
            raise LinkLost("the machine is gone")
        host, guest = memory_pipe()
        await self.break_link()
        self._streams = [host, guest]
        self.connections += 1
        if self.serve is not None:
            self._tasks.start_soon(self.serve, guest)
        return host

    async def break_link(self) -> None:
        """Cuts the current connection."""
        for stream in self._streams:
            await stream.aclose()

    async def wait(self) -> MachineExit:
        await self._exited.wait()
        assert self._exit is not None
        return self._exit

    async def die(self, reason: str = "killed by signal 9", *, clean: bool = False) -> None:
        """Ends the machine."""
        if self._exit is None:
            self._exit = MachineExit(returncode=0 if clean else -9, reason=reason, clean=clean)
            self._exited.set()
            await self.break_link()
            await self.system.end_processes(0)

    async def power_off(self, grace_seconds: float) -> MachineExit:
        with anyio.move_on_after(grace_seconds):
            await self.system.powered_off.wait()
        await self.die("powered off", clean=True)
        return await self.wait()

    async def kill(self) -> MachineExit:
        await self.die()
        return await self.wait()

    def console_tail(self, max_bytes: int = 8192) -> str:
        return self.console[-max_bytes:]

    def leave_running(self) -> None:
        self.left_running = True


class MemoryHandle:
    """What one runtime holds of a machine; worthless once another runtime has adopted that."""

    def __init__(self, machine: MemoryMachine) -> None:
        self.machine = machine
        machine.holder = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    async def connect(self) -> ByteStream:
        if self.machine.holder is not self:
            raise LinkLost("another runtime has this machine")
        return await self.machine.connect()


class MemoryDriver:
    """Runs in-memory guests.

    Args:
        tasks: owns agents, so that they outlive a runtime as VMMs do.
    """

    name = "memory"
    acceleration = "none"
    binary = Path("/bin/true")

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self.machines: dict[int, MemoryMachine] = {}
        #: What machines started from now on have in place of the agent; None leaves them the real one.
        self.impostor: Serve | None = None

    @property
    def newest(self) -> MemoryMachine:
        """The machine that was started last."""
        return self.machines[max(self.machines)]

    @asynccontextmanager
    async def start(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        pid = 1_000_000 + len(self.machines)
        machine = MemoryMachine(ProcessIdentity(pid=pid, start_ticks=1, boot_id="memory"), spec, self._tasks)
        machine.serve = self.impostor or machine.serve
        self.machines[pid] = machine
        async with self._owned(machine) as handle:
            yield handle

    @asynccontextmanager
    async def adopt(self, spec: MachineSpec, identity: ProcessIdentity) -> AsyncIterator[Machine]:
        machine = self.machines.get(identity.pid)
        if machine is None or not machine.alive:
            raise WorkspaceFailed("the VM is gone")
        machine.left_running = False
        async with self._owned(machine) as handle:
            yield handle

    async def end_all(self) -> None:
        """Ends the machines that a runtime left running."""
        for machine in self.machines.values():
            await machine.die()

    @asynccontextmanager
    async def _owned(self, machine: MemoryMachine) -> AsyncIterator[Machine]:
        handle = MemoryHandle(machine)
        try:
            yield handle
        finally:
            if machine.holder is handle and not machine.left_running:
                with anyio.CancelScope(shield=True):
                    await machine.die()


class MemoryImages:
    """Images that hold nothing: the in-memory guest boots none. There is one environment."""

    name = "debian:12"

    def __init__(self, home: Path) -> None:
        self._file = home / "empty.img"

    async def ensure_guest(self, report: object, **_: object) -> GuestImages:
        self._file.touch()
        return GuestImages(kernel=self._file, initramfs=self._file, tools=self._file, key="memory")

    async def ensure_environment(self, name: str, report: object) -> EnvironmentImage:
        self.inspect(name)
        self._file.touch()
        return EnvironmentImage(name=name, digest="0" * 64, base=self._file, size_bytes=0, created_at=0.0)

    async def build(self, name: str, report: object, *, force: bool) -> EnvironmentImage:
        return await self.ensure_environment(name, report)

    async def prune(self, in_use: object, *, all: bool = False) -> Pruned:  # noqa: A002 - as ImageStore has it
        return Pruned(removed=[], bytes_freed=0)

    def upper_template(self) -> Path:
        return self._file

    def list(self) -> list[Environment]:
        return [self.inspect(self.name)]

    def inspect(self, name: str) -> Environment:
        if name != self.name:
            raise EnvironmentNotFound(f"there is no environment {name!r}", hint=f"known are {self.name}")
        return Environment(name=name, description="nothing", built=True, digest="0" * 64)
