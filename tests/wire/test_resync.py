from __future__ import annotations

import os

import anyio
import pytest
from anyio.abc import ByteStream

from pyro_async.errors import LinkLost, ProtocolError
from pyro_async.groups import plain_task_group
from pyro_async.wire.codec import Hello, Request
from pyro_async.wire.connection import Connection
from pyro_async.wire.frames import HEADER, FrameType
from pyro_async.wire.mux import Role
from pyro_async.wire.resync import EPOCH_SIZE, MARKER, accept_epoch, start_epoch
from pyro_async.wire.stream import Stream
from tests.support.memory_guest import MemoryStream, memory_pipe

pytestmark = pytest.mark.usefixtures("no_task_left")

EPOCH = bytes(range(EPOCH_SIZE))


async def received_by_agent(*pieces: bytes, size: int) -> tuple[bytes, bytes]:
    """What an agent answers to these pieces, and the ``size`` bytes it then sees first."""
    host, guest = memory_pipe()
    async with plain_task_group() as tasks:

        async def send() -> None:
            for piece in pieces:
                await host.send(piece)

        tasks.start_soon(send)
        with anyio.fail_after(5):
            stream = await accept_epoch(guest)
            answer = await host.receive()
            first = b""
            while len(first) < size:
                first += await stream.receive()
    await host.aclose()
    await guest.aclose()
    return answer, first


@pytest.mark.parametrize("stale", [b"", b"half a frame", MARKER[:7], MARKER[:-1], MARKER[:3] * 5], ids=repr)
async def test_whatever_is_stale_is_discarded(stale: bytes) -> None:
    answer, first = await received_by_agent(stale + MARKER + EPOCH + b"frame", size=5)
    assert (answer, first) == (EPOCH, b"frame")


@pytest.mark.parametrize("at", range(len(MARKER) + EPOCH_SIZE + 1))
async def test_the_marker_may_be_split_anywhere(at: int) -> None:
    sent = MARKER + EPOCH
    pieces = [piece for piece in (b"stale" + sent[:at], sent[at:] + b"frame") if piece]
    assert await received_by_agent(*pieces, size=5) == (EPOCH, b"frame")


async def test_of_several_attempts_only_the_newest_is_answered() -> None:
    newest = os.urandom(EPOCH_SIZE)
    sent = MARKER + EPOCH + MARKER + EPOCH[::-1] + MARKER + newest + b"frame"
    assert await received_by_agent(sent, size=5) == (newest, b"frame")


async def test_the_host_discards_what_a_dead_connection_left_in_the_queue() -> None:
    host, guest = memory_pipe()
    await guest.send(os.urandom(5000))
    async with plain_task_group() as tasks:

        async def agent() -> None:
            stream = await accept_epoch(guest)
            await stream.send(b"first frame")

        tasks.start_soon(agent)
        with anyio.fail_after(5):
            stream = await start_epoch(host)
            assert await stream.receive() == b"first frame"
    await host.aclose()
    await guest.aclose()


async def test_a_retry_after_an_attempt_that_nobody_answered_succeeds() -> None:
    host, guest = memory_pipe()
    with anyio.move_on_after(0.02):
        await start_epoch(host)
    async with plain_task_group() as tasks:
        tasks.start_soon(serve_as_agent, Uninterrupted(guest), [])
        with anyio.fail_after(5):
            await start_epoch(host)
        tasks.cancel_scope.cancel()
    await host.aclose()
    await guest.aclose()


@pytest.mark.parametrize("side", [start_epoch, accept_epoch])
async def test_the_end_of_the_stream_is_a_lost_link(side: object) -> None:
    host, guest = memory_pipe()
    await guest.aclose()
    with pytest.raises(LinkLost):
        await side(host)  # type: ignore[operator]
    await host.aclose()


HANG_UP = b""


class Uninterrupted(MemoryStream):
    """A virtio serial port: closing a connection over it closes nothing; HANG_UP is read as a host that went away."""

    def __init__(self, stream: MemoryStream) -> None:
        super().__init__(stream._send, stream._receive)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if (data := await super().receive()) == HANG_UP:
            raise anyio.EndOfStream
        return data

    async def aclose(self) -> None:
        pass


async def serve_as_agent(port: ByteStream, served: list[int]) -> None:
    """What the agent does on a port without connections: starts over where the last connection failed."""

    async def handler(stream: Stream, request: Request) -> str:
        return f"connection {len(served)}"

    already = b""
    while True:
        try:
            positioned = await accept_epoch(port, already)
        except LinkLost:  # a hang-up between connections
            already = b""
            continue
        connection = Connection(positioned, role=Role.SERVER, hello=Hello(), handler=handler)
        served.append(len(served))
        try:
            await connection.run()
        except (LinkLost, ProtocolError):
            pass
        already = connection.unparsed() if isinstance(connection.failure, ProtocolError) else b""


@pytest.mark.parametrize("share", [0, 3, HEADER.size, 500])
async def test_an_agent_starts_over_after_the_hosts_death(share: int) -> None:
    """The host dies with ``share`` bytes of a request on the wire; the next host gets a working connection.

    Between frames the agent may miss the hang-up, for the marker cannot be a header; within one it must see it.
    """
    host, guest = memory_pipe()
    served: list[int] = []
    async with plain_task_group() as tasks:
        tasks.start_soon(serve_as_agent, Uninterrupted(guest), served)
        with anyio.fail_after(10):
            for attempt in range(3):
                stream = await start_epoch(host)
                connection = Connection(Uninterrupted(_bare(stream, host)), role=Role.CLIENT, hello=Hello())
                async with plain_task_group() as lives:
                    await lives.start(connection.run)
                    assert await connection.call("any", None, str) == f"connection {attempt + 1}"
                    connection.close()
                if share:
                    await host.send((HEADER.pack(1000, 3, FrameType.OPEN) + bytes(1000))[:share])
                if share >= HEADER.size:
                    await host.send(HANG_UP)
        tasks.cancel_scope.cancel()
    await host.aclose()
    await guest.aclose()


def _bare(stream: ByteStream, host: MemoryStream) -> MemoryStream:
    assert stream is host, "nothing may follow the epoch before we have greeted"
    return host
