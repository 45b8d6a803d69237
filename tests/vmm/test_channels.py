"""The handshake of Firecracker's hybrid vsock, against every way in which the other side can behave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from pyro_async.errors import GuestUnresponsive, LinkLost
from pyro_async.vmm.channels import HybridVsock

Behaviour = Callable[[SocketStream], Awaitable[None]]


@asynccontextmanager
async def vmm_that(directory: Path, *behaviours: Behaviour) -> AsyncIterator[list[bytes]]:
    """Serves ``vsock.sock``: the first connection by the first behaviour, and so on; the last one stays."""
    requests: list[bytes] = []
    pending = list(behaviours)

    async def serve(stream: SocketStream) -> None:
        behaviour = pending.pop(0) if len(pending) > 1 else pending[0]
        async with stream:
            try:
                requests.append(await stream.receive())
                await behaviour(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async with (
        await anyio.create_unix_listener(directory / "vsock.sock") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, serve)
        yield requests
        await anyio.wait_all_tasks_blocked()  # each behaviour has seen how its connection ended
        group.cancel_scope.cancel()


async def accept(stream: SocketStream) -> None:
    await stream.send(b"OK 1073741824\nfirst words of the agent")
    await stream.send(await stream.receive())


async def refuse(stream: SocketStream) -> None:
    pass


async def stay_silent(stream: SocketStream) -> None:
    await stream.receive()


async def babble(stream: SocketStream) -> None:
    await stream.send(b"x" * 1000)


async def test_what_follows_the_answer_belongs_to_the_agent(tmp_path: Path) -> None:
    vsock = HybridVsock(tmp_path, "vsock.sock")
    async with vmm_that(tmp_path, accept) as requests, await vsock.connect(lambda: False) as stream:
        assert await stream.receive() == b"first words of the agent"
        await stream.send(b"echo")
        assert await stream.receive() == b"echo"
    assert requests == [b"CONNECT 5000\n"]


async def test_every_attempt_uses_a_fresh_socket_until_the_guest_listens(tmp_path: Path) -> None:
    async with vmm_that(tmp_path, refuse, babble, stay_silent, accept) as requests:
        with anyio.fail_after(5):
            stream = await HybridVsock(tmp_path, "vsock.sock", port=7).connect(lambda: False)
        await stream.aclose()
    assert requests == [b"CONNECT 7\n"] * 4


async def test_guest_that_never_listens_is_unresponsive(tmp_path: Path) -> None:
    async with vmm_that(tmp_path, refuse):
        with pytest.raises(GuestUnresponsive, match=r"port 5000 for 0\.2 s"):
            await HybridVsock(tmp_path, "vsock.sock").connect(lambda: False, timeout_seconds=0.2)


async def test_machine_that_has_ended_is_a_lost_link(tmp_path: Path) -> None:
    with pytest.raises(LinkLost):
        await HybridVsock(tmp_path, "vsock.sock").connect(lambda: True)


async def test_directory_with_a_path_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    short = tmp_path / "short"
    long = tmp_path / ("long" * 40)
    short.mkdir()
    async with vmm_that(short, accept):
        short.rename(long)
        stream = await HybridVsock(long, "vsock.sock").connect(lambda: False)
        await stream.aclose()
        long.rename(short)
