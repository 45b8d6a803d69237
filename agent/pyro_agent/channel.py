"""Byte streams to the host: a virtio serial port, or connections to a vsock port."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
from anyio.abc import ByteStream

__all__ = ["PORT_NAME", "VSOCK_PORT", "DescriptorStream", "PortStream", "accept_vsock", "find_port", "listen_vsock"]

PORT_NAME: Final = "pyro.agent"
VSOCK_PORT: Final = 5000
_SYSFS: Final = "/sys/class/virtio-ports"

#: How often a serial port is asked whether a host has come, in seconds. There is nothing to wait for: poll reports a
#: hang-up at once, and SIGIO would come with every byte that arrives.
_ABSENT_INTERVAL: Final = 0.02
#: The kernel hands over at most a page per read of a serial port: reads are gathered up to this size.
_GATHER: Final = 64 * 1024


class DescriptorStream(ByteStream):
    """A byte stream over a non-blocking descriptor, which it owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                data = os.read(self._fd, max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._fd)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        view = memoryview(item)
        while view:
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._fd)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """There is no half-close here: the end of a connection is the end of both directions."""

    async def aclose(self) -> None:
        if self._fd >= 0:
            anyio.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


class PortStream(DescriptorStream):
    """One connection's worth of a virtio serial port.

    Closing it leaves the port open: to close that would throw away what the host has already sent for the next
    connection. Until a host is connected, reading waits; once one was, its going away is the end of the stream.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._met = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while size < min(max_bytes, _GATHER):
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                data = os.read(self._fd, max_bytes - size)
            except BlockingIOError:
                if chunks:
                    break
                await anyio.wait_readable(self._fd)
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if data:
                self._met = True
                chunks.append(data)
                size += len(data)
                if len(data) < 4096:
                    break  # most likely the last; if not, poll says so
            elif chunks:
                break
            elif self._met:
                raise anyio.EndOfStream
            else:
                await anyio.sleep(_ABSENT_INTERVAL)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def aclose(self) -> None:
        if self._fd >= 0:
            anyio.notify_closing(self._fd)
            self._fd = -1


def find_port() -> str:
    """Returns the device of the serial port that leads to the host.

    Raises:
        FileNotFoundError: the machine has none.
    """
    for entry in os.listdir(_SYSFS):
        with open(f"{_SYSFS}/{entry}/name") as file:
            if file.read().strip() == PORT_NAME:
                return f"/dev/{entry}"
    raise FileNotFoundError(f"no virtio serial port is named {PORT_NAME}")


def listen_vsock() -> socket.socket:
    """Listens for the host. Connections come from :func:`accept_vsock`."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
    listener.listen(4)
    return listener


async def accept_vsock(listener: socket.socket) -> DescriptorStream:
    """Waits for the next connection."""
    while True:
        try:
            connection, (cid, _) = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            await anyio.wait_readable(listener.fileno())
            continue
        if cid != socket.VMADDR_CID_HOST:
            connection.close()  # a process of the guest itself, by loopback
            continue
        connection.setblocking(False)
        return DescriptorStream(connection.detach())
