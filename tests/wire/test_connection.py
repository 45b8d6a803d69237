from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from pyro_async.errors import (
    HomeBusy,
    InternalError,
    InvalidArgument,
    LinkLost,
    ProtocolError,
    UnknownOperation,
    VersionMismatch,
)
from pyro_async.groups import plain_task_group
from pyro_async.wire.codec import Ending, Hello, Request, encode
from pyro_async.wire.connection import Connection, Handler
from pyro_async.wire.frames import HEADER, MAX_PAYLOAD, FrameType
from pyro_async.wire.mux import WINDOW, Data, End, Eof, Message, Role
from pyro_async.wire.stream import Stream, raw
from tests.support.memory_guest import MemoryStream, memory_pipe

pytestmark = pytest.mark.usefixtures("no_task_left")


async def no_handler(stream: Stream, request: Request) -> object:
    raise UnknownOperation(request.method)


@asynccontextmanager
async def connected(handler: Handler = no_handler) -> AsyncIterator[tuple[Connection, Connection]]:
    """A client connected to a server that has this handler."""
    near, far = memory_pipe()
    client = Connection(near, role=Role.CLIENT, hello=Hello(software="client"))
    server = Connection(far, role=Role.SERVER, hello=Hello(software="server", nonce=b"n"), handler=handler)
    with anyio.fail_after(20):
        async with plain_task_group() as tasks:
            tasks.start_soon(server.run)
            await tasks.start(client.run)
            yield client, server
            client.close()


@asynccontextmanager
async def against_bytes(handler: Handler | None = None) -> AsyncIterator[tuple[Connection, MemoryStream]]:
    """A client whose peer is the test, byte by byte."""
    near, far = memory_pipe()
    client = Connection(near, role=Role.CLIENT, hello=Hello(), handler=handler)
    with anyio.fail_after(20):
        async with plain_task_group() as tasks:
            await far.send(frame(FrameType.HELLO, 0, encode(Hello())))
            await tasks.start(client.run)
            yield client, far
            client.close()
            await far.aclose()


def frame(kind: int, stream_id: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), stream_id, kind) + payload


async def echo(stream: Stream, request: Request) -> object:
    """Sends everything back, then how many bytes there were."""
    total = 0
    while not isinstance(item := await stream.receive(), Eof):
        if isinstance(item, Data):
            await stream.send(item.data, item.channel)
            stream.grant(len(item.data))
            total += len(item.data)
    return total


async def read_all(stream: Stream, each: Callable[[bytes], Awaitable[None]] | None = None) -> tuple[int, End]:
    total = 0
    while True:
        item = await stream.receive()
        if isinstance(item, End):
            return total, item
        assert isinstance(item, Data)
        if each is not None:
            await each(item.data)
        total += len(item.data)
        stream.grant(len(item.data))


# --- greeting ---------------------------------------------------------------------------------------------------------


async def test_both_ends_know_their_peer_once_connected() -> None:
    async with connected() as (client, server):
        assert (client.peer.software, client.peer.nonce) == ("server", b"n")
        assert server.peer.software == "client"


async def test_another_protocol_version_is_refused_with_both_versions_named() -> None:
    near, far = memory_pipe()
    await far.send(frame(FrameType.HELLO, 0, msgspec.msgpack.encode([99, "pyro 9", b"", 0, "a later field"])))
    with pytest.raises(VersionMismatch, match=r"pyro 9.* protocol 99.* 1"):
        await Connection(near, role=Role.CLIENT, hello=Hello(software="this")).run()
    await far.aclose()


@pytest.mark.parametrize(
    ("sent", "failure"),
    [
        (b"\xff" * 16, ProtocolError),
        (frame(FrameType.OPEN, 2), ProtocolError),
        (frame(FrameType.HELLO, 0, b"\xc1"), ProtocolError),
        (frame(FrameType.HELLO, 0, msgspec.msgpack.encode(["one"])), ProtocolError),
        (b"", LinkLost),
        (frame(FrameType.HELLO, 0, encode(Hello()))[:5], LinkLost),
    ],
    ids=["noise", "no greeting", "undecodable", "wrong type", "silence", "half a greeting"],
)
async def test_a_bad_greeting_ends_the_connection(sent: bytes, failure: type[Exception]) -> None:
    near, far = memory_pipe()
    if sent:
        await far.send(sent)
    await far.send_eof()
    connection = Connection(near, role=Role.CLIENT, hello=Hello())
    with pytest.raises(failure):
        await connection.run()
    assert isinstance(connection.failure, failure)
    await far.aclose()


async def test_frames_that_arrive_with_the_greeting_are_not_lost() -> None:
    async def handler(stream: Stream, request: Request) -> str:
        return request.method

    near, far = memory_pipe()
    server = Connection(near, role=Role.SERVER, hello=Hello(), handler=handler)
    opening = frame(FrameType.HELLO, 0, encode(Hello())) + frame(FrameType.OPEN, 1, encode(Request("early")))
    async with plain_task_group() as tasks:
        await far.send(opening)
        await tasks.start(server.run)
        await far.receive()
        with anyio.fail_after(5):
            assert b"early" in await far.receive()
        server.close()
    await far.aclose()


# --- requests and results ---------------------------------------------------------------------------------------------


async def test_a_call_returns_what_the_handler_returns() -> None:
    async def handler(stream: Stream, request: Request) -> list[str]:
        return [request.method, msgspec.msgpack.decode(request.params)]

    async with connected(handler) as (client, _):
        assert await client.call("name", "parameter", list[str]) == ["name", "parameter"]


async def test_a_handlers_error_reaches_the_caller_as_itself() -> None:
    async def handler(stream: Stream, request: Request) -> object:
        raise HomeBusy("busy", hint="wait")

    async with connected(handler) as (client, _):
        with pytest.raises(HomeBusy) as caught:
            await client.call("any", None, object)
        assert caught.value.hint == "wait"


@pytest.mark.parametrize("defect", [ZeroDivisionError("x"), ExceptionGroup("g", [OSError()])], ids=["error", "group"])
async def test_a_defect_in_one_handler_ends_only_its_stream(defect: Exception) -> None:
    async def handler(stream: Stream, request: Request) -> object:
        if request.method == "bad":
            raise defect
        return "fine"

    async with connected(handler) as (client, _):
        with pytest.raises(InternalError, match=type(defect).__name__):
            await client.call("bad", None, object)
        assert await client.call("good", None, str) == "fine"


@pytest.mark.parametrize("result", ["\udcff", object()], ids=["surrogate", "no such type"])
async def test_a_result_that_cannot_be_encoded_is_an_error_of_its_stream(result: object) -> None:
    async def handler(stream: Stream, request: Request) -> object:
        return result

    async with connected(handler) as (client, _):
        with pytest.raises((InvalidArgument, InternalError)):
            await client.call("any", None, object)
        with pytest.raises((InvalidArgument, InternalError)):
            await client.call("again", None, object)


async def test_a_result_or_request_above_the_frame_limit_is_refused_here() -> None:
    async def handler(stream: Stream, request: Request) -> bytes:
        return bytes(MAX_PAYLOAD)

    async with connected(handler) as (client, _):
        with pytest.raises(InternalError, match="above the limit"):
            await client.call("large result", None, bytes)
        with pytest.raises(InvalidArgument, match="above the limit"):
            await client.call("large request", bytes(MAX_PAYLOAD), bytes)


async def test_a_result_of_the_wrong_type_is_a_protocol_error_of_that_call() -> None:
    async def handler(stream: Stream, request: Request) -> str:
        return "not a number"

    async with connected(handler) as (client, _):
        with pytest.raises(ProtocolError, match="malformed"):
            await client.call("any", None, int)
        assert await client.call("any", None, str) == "not a number"


# --- flow control -----------------------------------------------------------------------------------------------------


async def test_a_slow_reader_bounds_what_is_in_flight() -> None:
    sent = 0

    async def produce(stream: Stream, request: Request) -> None:
        nonlocal sent
        for _ in range(64 * 16):
            await stream.send(bytes(64 * 1024))
            sent += 64 * 1024

    async with connected(produce) as (client, _):
        stream = client.open("produce")
        received = 0

        async def check(data: bytes) -> None:
            nonlocal received
            received += len(data)
            await anyio.lowlevel.checkpoint()
            assert sent - received <= WINDOW

        tracemalloc.start()
        total, _ = await read_all(stream, check)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert total == 64 * 1024 * 1024
    assert peak < 8 * WINDOW


async def test_tiny_pieces_cost_little_more_than_their_bytes_while_they_wait() -> None:
    async with against_bytes() as (client, far):
        stream = client.open("any")
        await far.receive()
        await far.receive()
        tracemalloc.start()
        size = 64 * 1024
        for _ in range(size // 1024):
            await far.send(frame(FrameType.DATA, 1, b"x") * 1024)
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 3 * size
        await far.send(frame(FrameType.END, 1, b"\x92\xc0\xc0"))
        total, _ = await read_all(stream)
        assert total == size


async def test_one_stream_without_credit_does_not_stop_another() -> None:
    async def handler(stream: Stream, request: Request) -> object:
        return await echo(stream, request) if request.method == "echo" else "pong"

    async with connected(handler) as (client, _), anyio.create_task_group() as tasks:
        stuck = client.open("echo")
        tasks.start_soon(stuck.send, bytes(4 * WINDOW))
        await anyio.wait_all_tasks_blocked()
        assert await client.call("ping", None, str) == "pong"
        tasks.cancel_scope.cancel()


async def test_both_directions_carry_megabytes_at_once() -> None:
    async with connected(echo) as (client, _), anyio.create_task_group() as tasks:
        stream = client.open("echo")

        async def feed() -> None:
            for _ in range(32):
                await stream.send(bytes(1024 * 1024), 1)
            stream.send_eof()

        tasks.start_soon(feed)
        total, end = await read_all(stream)
        assert total == 32 * 1024 * 1024
        assert end.payload == encode(Ending(None, raw(total)))


async def test_messages_keep_their_place_between_data() -> None:
    async def handler(stream: Stream, request: Request) -> None:
        await stream.send(b"one")
        await stream.send_message(["two"])
        await stream.send(b"")
        await stream.send(b"three", 2)

    async with connected(handler) as (client, _):
        stream = client.open("any")
        items = [await stream.receive() for _ in range(4)]
    kinds = [type(item) for item in items]
    assert kinds == [Data, Message, Data, End]


async def test_granted_counts_what_the_peer_took() -> None:
    async def take_half(stream: Stream, request: Request) -> object:
        taken = 0
        while taken < WINDOW // 2:
            item = await stream.receive()
            assert isinstance(item, Data)
            stream.grant(len(item.data))
            taken += len(item.data)
        await anyio.sleep_forever()
        return None

    async with connected(take_half) as (client, _):
        stream = client.open("any")
        await stream.send(bytes(WINDOW))
        await anyio.wait_all_tasks_blocked()
        assert WINDOW // 2 <= stream.granted <= WINDOW // 2 + 256 * 1024


async def test_a_thousand_streams_at_once_each_get_their_own_answer() -> None:
    async def handler(stream: Stream, request: Request) -> int:
        await anyio.lowlevel.checkpoint()
        number: int = msgspec.msgpack.decode(request.params)
        await stream.send(b"x" * number)
        return number

    async with connected(handler) as (client, _):
        answers: dict[int, tuple[int, End]] = {}

        async def ask(number: int) -> None:
            answers[number] = await read_all(client.open("any", number))

        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(ask, number)
    assert {number: total for number, (total, _) in answers.items()} == {number: number for number in range(1000)}


# --- cancellation and loss --------------------------------------------------------------------------------------------


async def test_cancelling_a_call_asks_the_handler_to_end() -> None:
    asked = anyio.Event()

    async def handler(stream: Stream, request: Request) -> None:
        stream.on_cancel = asked.set
        await anyio.sleep_forever()

    async with connected(handler) as (client, _):
        with anyio.move_on_after(0.05):
            await client.call("any", None, object)
        with anyio.fail_after(5):
            await asked.wait()


async def test_a_cancel_that_came_before_the_handler_ran_is_seen() -> None:
    async def handler(stream: Stream, request: Request) -> bool:
        await anyio.wait_all_tasks_blocked()
        return stream.cancelled

    async with connected(handler) as (client, _):
        stream = client.open("any")
        stream.cancel()
        assert await stream.result(bool)


@pytest.mark.parametrize("how", ["close", "peer closes", "broken"])
async def test_loss_of_the_link_wakes_every_waiter(how: str) -> None:
    async def handler(stream: Stream, request: Request) -> None:
        await anyio.sleep_forever()

    outcomes: list[str] = []

    async def expect_loss(name: str, wait: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(LinkLost):
            await wait()
        outcomes.append(name)

    async with connected(handler) as (client, server), anyio.create_task_group() as tasks:
        without_credit = client.open("any")
        await without_credit.send(bytes(WINDOW))
        tasks.start_soon(expect_loss, "receiver", client.open("any").receive)
        tasks.start_soon(expect_loss, "sender", lambda: without_credit.send(b"x"))
        tasks.start_soon(expect_loss, "caller", lambda: client.call("any", None, object))
        await anyio.wait_all_tasks_blocked()
        if how == "close":
            client.close()
        elif how == "peer closes":
            server.close()
        else:
            await client._stream.aclose()
        assert isinstance(await client.wait_down(), LinkLost)
    assert sorted(outcomes) == ["caller", "receiver", "sender"]
    with pytest.raises(LinkLost):
        client.open("late")


async def test_what_arrived_before_the_loss_can_still_be_read() -> None:
    async with against_bytes() as (client, far):
        stream = client.open("any")
        await far.send(frame(FrameType.DATA, 1, b"last words"))
        await far.send_eof()
        await client.wait_down()
        assert await stream.receive() == Data(1, 0, b"last words")
        with pytest.raises(LinkLost):
            await stream.receive()


async def test_a_violation_takes_the_connection_down_with_its_reason() -> None:
    async with against_bytes() as (client, far):
        stream = client.open("any")
        await far.send(frame(FrameType.END, 99))
        failure = await client.wait_down()
        assert isinstance(failure, ProtocolError)
        with pytest.raises(ProtocolError, match="not open"):
            await stream.receive()


async def test_handlers_are_cancelled_when_the_connection_goes() -> None:
    cancelled = anyio.Event()

    async def handler(stream: Stream, request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with connected(handler) as (client, _):
        client.open("any")
        await anyio.wait_all_tasks_blocked()
        client.close()
        with anyio.fail_after(5):
            await cancelled.wait()


async def test_cancelling_run_closes_the_byte_stream() -> None:
    near, far = memory_pipe()
    connection = Connection(near, role=Role.CLIENT, hello=Hello())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.run)
        await far.receive()
        tasks.cancel_scope.cancel()
    with pytest.raises(anyio.EndOfStream):
        await far.receive()
    assert isinstance(connection.failure, LinkLost)
    await far.aclose()


async def test_flush_waits_for_what_the_writer_has_in_hand() -> None:
    async with against_bytes() as (client, far):
        for _ in range(4):  # the pipe takes two pieces, the writer then waits with the third
            client.open("any")
            await anyio.wait_all_tasks_blocked()
        flushed = anyio.Event()

        async def flush() -> None:
            await client.flush()
            flushed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flush)
            await anyio.wait_all_tasks_blocked()
            assert not flushed.is_set()
            while not flushed.is_set():
                await far.receive()
                await anyio.wait_all_tasks_blocked()
        assert client.mux.pending == 0
        rest = await far.receive() + await far.receive()
        assert rest.endswith(frame(FrameType.OPEN, 7, encode(Request("any"))))


async def test_an_answer_to_an_ended_stream_is_dropped() -> None:
    async def handler(stream: Stream, request: Request) -> str:
        stream.end("early")
        with pytest.raises(LinkLost):
            await stream.send(b"too late")
        stream.grant(5)
        stream.end("twice")
        return "late"

    async with connected(handler) as (client, _):
        assert await client.call("any", None, str) == "early"
        assert await client.call("any", None, str) == "early"
