"""The byte stream between host and guest: virtio-serial, or vsock behind a unix socket.

A channel object belongs to one VM. It contributes arguments to the VMM's command line, owns the daemon that its device
may need, and connects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio
import msgspec
from anyio.abc import SocketStream

from pyro_async.errors import DriverUnavailable, GuestUnresponsive, LinkLost
from pyro_async.vmm.process import Process, ProcessIdentity, listens_on
from pyro_async.vmm.sockets import connect_when_ready, remove_stale

__all__ = ["AGENT_PORT", "Channel", "HybridVsock", "HybridVsockChannel", "VirtioSerialChannel"]

AGENT_PORT = 5000
"""The vsock port on which the guest's agent listens."""

CONNECT_SECONDS = 60.0
"""How long :meth:`Channel.connect` waits for the other side; covers a cold boot on a busy host without KVM."""

_SERIAL_NAME = "pyro.agent"
_ANSWER_SECONDS = 1.0
_RETRY_SECONDS = 0.02
_DAEMON_START_SECONDS = 5.0
_DAEMON_KILL_SECONDS = 5.0


class Channel(Protocol):
    """How bytes get into one guest and out of it."""

    @property
    def qemu_arguments(self) -> Sequence[str]: ...

    @property
    def kernel_arguments(self) -> Sequence[str]:
        """What tells the agent which channel to serve."""
        ...

    @property
    def shared_memory(self) -> bool:
        """Whether another process has to map the guest's memory."""
        ...

    @property
    def awaited_device(self) -> str | None:
        """QEMU's id of the device that the guest's driver must have started before anyone connects, if that matters."""
        ...

    async def start(self) -> None:
        """Prepares for a new VMM, which starts next; raises :class:`DriverUnavailable` or OSError."""
        ...

    def adopt(self) -> None:
        """Takes over what an earlier process started; raises ProcessLookupError if that has ended."""
        ...

    async def wait_broken(self) -> str:
        """Returns, with the cause, when the channel can never work again."""
        ...

    async def connect(self, given_up: Callable[[], bool]) -> SocketStream:
        """Opens a stream; raises LinkLost once ``given_up()`` is true, GuestUnresponsive after 60 s."""
        ...

    async def stop(self) -> None:
        """Ends what the channel started; bounded, and callable at any time, also twice."""
        ...

    def release(self) -> None:
        """Gives up the handles and leaves what the channel started running."""
        ...


class VirtioSerialChannel:
    """A virtio-serial port. It survives templating, and has no connections: bytes wait until the guest reads them."""

    _socket = "agent.sock"

    kernel_arguments: Sequence[str] = ()
    shared_memory = False
    awaited_device: str | None = None
    qemu_arguments: Sequence[str] = (
        *("-chardev", f"socket,id=agent,path={_socket},server=on,wait=off"),
        *("-device", "virtio-serial-device,max_ports=2"),
        *("-device", f"virtserialport,chardev=agent,name={_SERIAL_NAME}"),
    )

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def start(self) -> None:
        remove_stale(self._directory, self._socket)

    def adopt(self) -> None:
        pass

    async def wait_broken(self) -> str:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def connect(self, given_up: Callable[[], bool]) -> SocketStream:
        with anyio.move_on_after(CONNECT_SECONDS):
            if stream := await connect_when_ready(self._directory, self._socket, given_up):
                return stream
            raise LinkLost("the virtual machine has ended")
        raise GuestUnresponsive(f"the VMM did not accept a connection within {CONNECT_SECONDS:g} s")

    async def stop(self) -> None:
        pass

    def release(self) -> None:
        pass


class HybridVsock:
    """A guest's vsock as Firecracker offers it: connect to a unix socket, name the port, read ``OK``.

    Source: https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md.
    """

    def __init__(self, directory: Path, name: str, *, port: int = AGENT_PORT) -> None:
        self._directory = directory
        self._name = name
        self._port = port

    async def connect(self, given_up: Callable[[], bool], *, timeout_seconds: float = CONNECT_SECONDS) -> SocketStream:
        """Connects to the port, trying again on fresh sockets until the guest listens.

        Raises LinkLost once ``given_up()`` is true, GuestUnresponsive after ``timeout_seconds``.
        """
        with anyio.move_on_after(timeout_seconds):
            while stream := await connect_when_ready(self._directory, self._name, given_up):
                if await self._handshake(stream):
                    return stream
                await anyio.sleep(_RETRY_SECONDS)
            raise LinkLost("the virtual machine has ended")
        raise GuestUnresponsive(f"nothing in the guest listened on vsock port {self._port} for {timeout_seconds:g} s")

    async def _handshake(self, stream: SocketStream) -> bool:
        accepted = False
        try:
            # A guest whose driver is not up yet leaves the request unanswered for ever, one without a listener refuses.
            with anyio.move_on_after(_ANSWER_SECONDS):
                await stream.send(f"CONNECT {self._port}\n".encode())
                answer = b""
                # Byte by byte: what follows the newline is the agent's.
                while not answer.endswith(b"\n") and len(answer) < 32:
                    answer += await stream.receive(1)
                accepted = answer.startswith(b"OK ")
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        finally:
            if not accepted:
                await anyio.aclose_forcefully(stream)
        return accepted


class HybridVsockChannel:
    """Real AF_VSOCK in a QEMU guest: one ``vhost-device-vsock`` daemon for each VM, which lives and dies with it.

    One daemon for several VMs would let them reach each other. The device cannot be migrated, hence not templated.
    """

    _socket = "vsock.sock"
    _device_socket = "vhost-vsock.sock"
    _stderr = "vhost-vsock.stderr"
    _record = "vhost-vsock.json"

    kernel_arguments: Sequence[str] = ("pyro.channel=vsock",)
    shared_memory = True
    # vhost-device-vsock 0.3.0 stops serving, for good, at a request that comes while its queues are being set up.
    awaited_device: str | None = "vsock"
    qemu_arguments: Sequence[str] = (
        *("-chardev", f"socket,id=vsock,path={_device_socket}"),
        *("-device", json.dumps({"driver": "vhost-user-vsock-device", "id": awaited_device, "chardev": "vsock"})),
    )

    def __init__(self, directory: Path, *, binary: Path) -> None:
        self._directory = directory
        self._binary = binary
        self._vsock = HybridVsock(directory, self._socket)
        self._daemon: Process | None = None

    @classmethod
    def using(cls, binary: Path) -> Callable[[Path], HybridVsockChannel]:
        """What a driver calls with a VM's directory to get its channel, served by this ``vhost-device-vsock``."""
        return partial(cls, binary=binary)

    async def start(self) -> None:
        remove_stale(self._directory, self._socket, self._device_socket)
        options = f"guest-cid=3,uds-path={self._socket},socket={self._device_socket}"
        try:
            self._daemon = await Process.spawn(
                [str(self._binary.absolute()), "--vm", options], cwd=self._directory, stderr=self._stderr
            )
        except (FileNotFoundError, PermissionError) as error:
            raise DriverUnavailable(f"cannot run {self._binary}: {error.strerror}") from error
        try:
            record = self._directory / self._record
            record.with_suffix(".new").write_bytes(msgspec.json.encode(self._daemon.identity))
            record.with_suffix(".new").replace(record)
            await self._wait_listening(self._daemon)
        except BaseException:
            await self.stop()
            raise

    async def _wait_listening(self, daemon: Process) -> None:
        with anyio.move_on_after(_DAEMON_START_SECONDS):
            while not daemon.poll():
                if listens_on(daemon.identity.pid, self._device_socket):
                    return
                await anyio.sleep(_RETRY_SECONDS / 10)
        raise DriverUnavailable(f"vhost-device-vsock did not start: {daemon.read_stderr().strip() or 'no message'}")

    def adopt(self) -> None:
        try:
            identity = msgspec.json.decode((self._directory / self._record).read_bytes(), type=ProcessIdentity)
        except (FileNotFoundError, msgspec.DecodeError) as error:
            raise ProcessLookupError("no record of the VM's vhost-device-vsock") from error
        self._daemon = Process.adopt(identity, cwd=self._directory, stderr=self._stderr)

    async def wait_broken(self) -> str:
        daemon = self._daemon
        if daemon is None:  # stopped on purpose
            await anyio.sleep_forever()
            raise AssertionError("unreachable")
        await daemon.wait()
        last_words = daemon.read_stderr().strip().splitlines()[-1:]
        return ": ".join(["vhost-device-vsock ended", *last_words])

    async def connect(self, given_up: Callable[[], bool]) -> SocketStream:
        return await self._vsock.connect(given_up)

    async def stop(self) -> None:
        if self._daemon is None:
            return
        self._daemon.kill()
        with anyio.CancelScope(shield=True), anyio.move_on_after(_DAEMON_KILL_SECONDS):
            await self._daemon.wait()
        with suppress(FileNotFoundError):
            os.unlink(self._directory / self._record)
        self.release()

    def release(self) -> None:
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None
