"""One running QEMU: its control connection, its console, its pauses and its end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import anyio.lowlevel
import msgspec
from anyio import CancelScope, to_thread
from anyio.abc import ByteStream, SocketStream, TaskGroup

from pyro_async.errors import GuestUnresponsive, LinkLost, WorkspaceFailed
from pyro_async.vmm.channels import CONNECT_SECONDS, Channel
from pyro_async.vmm.console import TAIL_BYTES, ConsoleLog
from pyro_async.vmm.driver import MachineExit, MachineSpec
from pyro_async.vmm.process import Process, ProcessIdentity
from pyro_async.vmm.qemu_arguments import CONSOLE_SOCKET, QMP_SOCKET, Accelerator
from pyro_async.vmm.qemu_exit import explain_exit, start_failure
from pyro_async.vmm.qmp import QmpClient, QmpError, QmpEvent
from pyro_async.vmm.sockets import connect_when_ready

__all__ = ["QemuMachine"]

START_SECONDS = 15.0
"""From the start of QEMU's process to a running guest."""
QUIT_GRACE_SECONDS = 3.0
"""For QEMU to flush its disks and end after QMP's ``quit``."""
KILL_GRACE_SECONDS = 10.0
"""For the kernel to end a killed QEMU; only a host that cannot finish a disk request takes as long."""
LAST_WORDS_SECONDS = 1.0
"""For the rest of console and events to arrive after QEMU has ended."""
RETRY_SECONDS = 1.0
"""Between attempts to repeat a disk write that failed."""
RESUME_FREE_BYTES = 16 << 20
"""Free space (or 1 % of a small file system) at which a VM paused by a full disk runs on."""


DRIVER_POLL_SECONDS = 0.02
"""Between looks at whether the guest has started a device, which QEMU does not announce."""
DAEMON_SETTLE_SECONDS = 0.1
"""For a vhost-user daemon to read from its socket what QEMU has already written there."""


class _Status(msgspec.Struct):
    status: str


class _DeviceStatus(msgspec.Struct):
    started: bool = msgspec.field(name="vhost-started")


class QemuMachine:
    """A :class:`~pyro_async.vmm.driver.Machine`; :meth:`attended` is the context in which it works."""

    def __init__(self, spec: MachineSpec, process: Process, channel: Channel, accelerator: Accelerator) -> None:
        self.paused_for: str | None = None
        self._spec = spec
        self._process = process
        self._channel = channel
        self._accelerator = accelerator
        self._console = ConsoleLog(spec.directory / "console.log")
        self._qmp: QmpClient | None = None
        self._connections: list[SocketStream] = []
        self._guest: SocketStream | None = None
        self._connecting = anyio.Lock()
        self._stopped = anyio.Event()
        self._host_is_full = True
        self._shutdown_reason: str | None = None
        self._verdict: str | None = None
        self._printed = anyio.Event()
        self._console_closed: anyio.Event | None = None
        self._exit: MachineExit | None = None
        self._over = anyio.Event()
        self._released = False
        self._background: list[CancelScope] = []

    @property
    def identity(self) -> ProcessIdentity:
        return self._process.identity

    @property
    def acceleration(self) -> str:
        return self._accelerator

    def console_tail(self, max_bytes: int = 8192) -> str:
        return self._console.tail(max_bytes)

    def leave_running(self) -> None:
        self._released = True

    async def connect(self) -> ByteStream:
        async with self._connecting:
            if self._guest is not None:
                # QEMU serves one client of a channel at a time.
                await self._guest.aclose()
            if self._channel.awaited_device is not None:
                await self._wait_for_driver(self._channel.awaited_device)
            self._guest = await self._channel.connect(self._is_over)
            return self._guest

    async def _wait_for_driver(self, device: str) -> None:
        path = {"path": f"/machine/peripheral/{device}"}
        try:
            with anyio.fail_after(CONNECT_SECONDS):
                while True:
                    status = await self._execute("x-query-virtio-status", path)
                    if msgspec.convert(status, _DeviceStatus).started:
                        # QEMU has sent the device's daemon all about the queues, and got no answer to the last of it.
                        await anyio.sleep(DAEMON_SETTLE_SECONDS)
                        return
                    await anyio.sleep(DRIVER_POLL_SECONDS)
        except TimeoutError:
            raise GuestUnresponsive(f"the guest did not start its channel in {CONNECT_SECONDS:g} s") from None
        except msgspec.ValidationError as error:
            raise LinkLost(f"QEMU sent a malformed device status: {error}") from error
        except QmpError as error:
            raise LinkLost(f"the virtual machine has ended: {error}") from error

    def _is_over(self) -> bool:
        return self._over.is_set() or self._process.poll()

    async def wait(self) -> MachineExit:
        await self._over.wait()
        if self._exit is None:
            raise LinkLost("the virtual machine was left running and is not watched any more")
        return self._exit

    async def power_off(self, grace_seconds: float) -> MachineExit:
        with anyio.move_on_after(grace_seconds):
            return await self.wait()
        with anyio.move_on_after(QUIT_GRACE_SECONDS):
            # Refused only if QEMU ended this moment or hangs; both show below.
            with suppress(QmpError):
                await self._execute("quit")
            return await self.wait()
        return await self.kill()

    async def kill(self) -> MachineExit:
        self._condemn("killed by the host")
        return await self.wait()

    @asynccontextmanager
    async def attended(self, *, adopted: bool) -> AsyncIterator[QemuMachine]:
        """Brings the VM up, or takes it over, and watches it; kills it on leaving unless it was left running.

        An adopted VM that does not answer is killed; one whose adoption is cancelled is left as it was.
        """
        failure: Exception | None = None
        async with anyio.create_task_group() as task_group:
            try:
                try:
                    await self._come_up(task_group)
                except anyio.get_cancelled_exc_class():
                    self._released = adopted
                    raise
                yield self
            except Exception as error:
                failure = error
            finally:
                with CancelScope(shield=True):
                    await self._leave()
        if failure is not None:
            raise failure  # outside of the task group, which would wrap it

    async def _come_up(self, task_group: TaskGroup) -> None:
        try:
            with anyio.fail_after(START_SECONDS):
                # QEMU waits for this connection before it does anything else.
                console = await self._connect_to_qemu(CONSOLE_SOCKET)
                self._console_closed = anyio.Event()
                self._run(task_group, "console", partial(self._keep_console, console, self._console_closed))
                qmp = await self._connect_to_qemu(QMP_SOCKET)
                self._qmp = QmpClient(qmp, self._on_event)
                self._run(task_group, "qmp", self._qmp.run)
                await self._qmp.negotiate()
        except TimeoutError:
            raise WorkspaceFailed(f"QEMU did not come up within {START_SECONDS:g} s") from None
        except QmpError as error:
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await self._process.wait()
                raise start_failure(self._accelerator, self._process.returncode, self._process.read_stderr()) from error
            raise WorkspaceFailed(f"QEMU did not come up: {error}") from error
        self._run(task_group, "vmm exit", self._watch_exit)
        self._run(task_group, "vmm pauses", self._watch_pauses)
        self._run(task_group, "vmm channel", self._watch_channel)

    def _run(self, task_group: TaskGroup, name: str, task: Callable[[], Awaitable[None]]) -> None:
        # Shielded: power_off in a shielded scope needs these tasks after everything around was cancelled. They end by
        # `_leave`.
        scope = CancelScope(shield=True)
        self._background.append(scope)

        async def run() -> None:
            with scope:
                await anyio.lowlevel.checkpoint()  # what is cancelled before it began must not begin
                await task()

        task_group.start_soon(run, name=name)

    async def _leave(self) -> None:
        # First the VMM, so that no guest runs without its watchers; then what the VMM used; then whoever watched it.
        if not self._released:
            self._condemn("killed by the host")
            with anyio.move_on_after(KILL_GRACE_SECONDS):
                await self._process.wait()
        if self._process.poll():
            await self._channel.stop()
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await self._settled()
            self._finish()
        else:
            self._channel.release()
        for scope in self._background:
            scope.cancel()
        for stream in (*self._connections, *([self._guest] if self._guest else [])):
            await stream.aclose()
        self._over.set()
        self._process.close()

    async def _connect_to_qemu(self, name: str) -> SocketStream:
        if stream := await connect_when_ready(self._spec.directory, name, self._process.poll):
            self._connections.append(stream)
            return stream
        raise QmpError("QEMU ended")

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        if self._qmp is None:
            raise QmpError("QEMU was never reached")
        return await self._qmp.execute(command, arguments)

    async def _query_status(self) -> str:
        try:
            return msgspec.convert(await self._execute("query-status"), _Status).status
        except msgspec.ValidationError as error:
            raise QmpError(f"QEMU sent a malformed status: {error}") from error

    def _on_event(self, event: QmpEvent) -> None:
        match event.name:
            case "SHUTDOWN":
                self._shutdown_reason = str(event.data.get("reason", "unknown"))
            case "BLOCK_IO_ERROR" if event.data.get("action") == "stop":
                self._host_is_full = event.data.get("nospace") is True
                cause = "the host's disk is full" if self._host_is_full else f"error: {event.data.get('reason')}"
                self.paused_for = f"writing the upper disk failed: {cause}"
            case "STOP":
                self._stopped.set()
            case "RESUME":
                self.paused_for = None

    async def _keep_console(self, stream: SocketStream, closed: anyio.Event) -> None:
        try:
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(self._write_console, name="console file")
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    async for data in stream:
                        self._console.append(data)
                        self._printed.set()
                task_group.cancel_scope.cancel()
        finally:
            with CancelScope(shield=True):
                await self._console.flush()
            closed.set()

    async def _write_console(self) -> None:
        # A serial port delivers a few bytes at a time; a file takes what piled up while the last write went on.
        while True:
            await self._printed.wait()
            self._printed = anyio.Event()
            await self._console.flush()

    async def _watch_pauses(self) -> None:
        """Runs a VM on that a failed write paused, and ends one that its accelerator gave up on."""
        try:
            while True:
                # Asked before the first event too: an adopted VM may have paused while nobody watched.
                self._stopped = anyio.Event()
                status = await self._query_status()
                if status == "internal-error":
                    self._condemn(f"{self._accelerator} cannot run this guest: internal error in QEMU")
                elif status == "io-error":
                    self.paused_for = self.paused_for or "writing the upper disk failed"
                    await self._until_writable()
                    await self._execute("cont")
                await self._stopped.wait()
        except QmpError:
            return  # the end of QEMU, which `_watch_exit` reports

    async def _until_writable(self) -> None:
        while True:
            await anyio.sleep(RETRY_SECONDS)
            # Other failures, such as a quota, show no state to wait for: the write itself is the test.
            if not self._host_is_full:
                return
            state = await to_thread.run_sync(os.statvfs, self._spec.upper)
            needed = min(RESUME_FREE_BYTES, state.f_blocks * state.f_frsize // 100)
            if state.f_bavail * state.f_frsize >= needed:
                return

    async def _watch_channel(self) -> None:
        self._condemn(await self._channel.wait_broken())

    def _condemn(self, verdict: str) -> None:
        if not self._process.poll():
            self._verdict = self._verdict or verdict
            self._process.kill()

    async def _watch_exit(self) -> None:
        await self._process.wait()
        with anyio.move_on_after(LAST_WORDS_SECONDS):
            await self._settled()
        self._finish()

    async def _settled(self) -> None:
        """Both connections end with QEMU; what it sent before is complete then."""
        if self._qmp is not None:
            await self._qmp.closed.wait()
        if self._console_closed is not None:
            await self._console_closed.wait()

    def _finish(self) -> None:
        self._exit = self._exit or explain_exit(
            returncode=self._process.returncode,
            verdict=self._verdict,
            shutdown_reason=self._shutdown_reason,
            console=self.console_tail(TAIL_BYTES),
            stderr=self._process.read_stderr(),
        )
        self._over.set()
