"""Connecting to unix sockets in a VM's directory, however long its path is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import SocketStream

__all__ = ["connect_when_ready", "connect_within", "remove_stale"]

_FIRST_RETRY_SECONDS = 0.001
_LAST_RETRY_SECONDS = 0.02


async def connect_within(directory: Path, name: str) -> SocketStream:
    """Connects to the unix socket ``name`` in ``directory``; raises OSError.

    A socket address holds at most 107 bytes of path, so the directory is named through a descriptor of ours.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await anyio.connect_unix(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


async def connect_when_ready(directory: Path, name: str, given_up: Callable[[], bool]) -> SocketStream | None:
    """Connects as soon as somebody listens; returns None if nobody does and ``given_up()`` became true.

    Has no deadline of its own. Neither QEMU nor Firecracker announces a socket in another way than by listening, so
    this tries again every 1 to 20 ms.
    """
    delay = _FIRST_RETRY_SECONDS
    while not given_up():
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return await connect_within(directory, name)
        await anyio.sleep(delay)
        delay = min(2 * delay, _LAST_RETRY_SECONDS)
    return None


def remove_stale(directory: Path, *names: str) -> None:
    """Removes sockets that an earlier VMM left behind, so that no connection can be meant for it."""
    for name in names:
        (directory / name).unlink(missing_ok=True)
