from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import ByteStream, UNIXSocketStream

from pyro_async.vmm.qmp import QmpClient, QmpCodec, QmpError, QmpEvent, QmpGreeting, QmpReply

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'
EVENT = b'{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}\r\n'


def test_messages_are_found_however_the_bytes_are_cut() -> None:
    replies = b'{"return": {"a": 1}, "id": 1}\r\n{"id": 2, "error": {"class": "GenericError", "desc": "no"}}\r\n'
    data = GREETING + EVENT + replies
    expected = [
        QmpGreeting(),
        QmpEvent("SHUTDOWN", {"guest": True, "reason": "guest-reset"}),
        QmpReply(1, {"a": 1}),
        QmpReply(2, None, "no"),
    ]
    for size in (1, 7, len(data)):
        codec = QmpCodec()
        cuts = (data[start : start + size] for start in range(0, len(data), size))
        assert [message for cut in cuts for message in codec.receive(cut)] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"not json\n",
        b'{"event": 7}\n',
        b'{"return": {}}\n',
        b"[]\n",
        b'{"id": 1, "error": "text"}\n',
        b'{"event": "\xff"}\n',
        b"x" * ((1 << 20) + 1),
    ],
)
def test_malformed_input_is_a_qmp_error(data: bytes) -> None:
    with pytest.raises(QmpError):
        QmpCodec().receive(data)


class Qemu:
    """The other end of the control socket."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream

    async def read(self) -> dict[str, object]:
        command: dict[str, object] = json.loads(await self.stream.receive())
        return command

    async def reply(self, command: dict[str, object], *, value: object = None, error: object = None) -> None:
        answer = {"return": value} if error is None else {"error": error}
        await self.stream.send(json.dumps({"id": command["id"], **answer}).encode() + b"\n")


@asynccontextmanager
async def connected(events: list[QmpEvent]) -> AsyncIterator[tuple[QmpClient, Qemu]]:
    near, far = socket.socketpair(socket.AF_UNIX)
    async with (
        await UNIXSocketStream.from_socket(near) as stream,
        await UNIXSocketStream.from_socket(far) as qemu_stream,
        anyio.create_task_group() as task_group,
    ):
        client, qemu = QmpClient(stream, events.append), Qemu(qemu_stream)
        task_group.start_soon(client.run)
        negotiated = anyio.Event()

        async def negotiate() -> None:
            await client.negotiate()
            negotiated.set()

        task_group.start_soon(negotiate)
        await qemu_stream.send(GREETING)
        command = await qemu.read()
        assert command["execute"] == "qmp_capabilities"
        await qemu.reply(command, value={})
        await negotiated.wait()
        yield client, qemu
        task_group.cancel_scope.cancel()


async def test_answers_find_their_commands_and_events_their_handler() -> None:
    events: list[QmpEvent] = []
    answers: dict[str, object] = {}

    async with connected(events) as (client, qemu), anyio.create_task_group() as task_group:

        async def execute(command: str) -> None:
            answers[command] = await client.execute(command)

        task_group.start_soon(execute, "query-status")
        status = await qemu.read()
        task_group.start_soon(execute, "query-name")
        name = await qemu.read()
        await qemu.stream.send(EVENT)
        await qemu.reply(name, value="vm")
        await qemu.reply(status, value="running")
    assert answers == {"query-name": "vm", "query-status": "running"}
    assert events == [QmpEvent("SHUTDOWN", {"guest": True, "reason": "guest-reset"})]


async def test_refusal_silence_and_hanging_up_are_qmp_errors() -> None:
    async with connected([]) as (client, qemu):
        async with anyio.create_task_group() as task_group:

            async def refuse() -> None:
                await qemu.reply(await qemu.read(), error={"class": "GenericError", "desc": "not now"})

            task_group.start_soon(refuse)
            with pytest.raises(QmpError, match="refused cont: not now"):
                await client.execute("cont")
        with pytest.raises(QmpError, match=r"did not answer stop within 0\.05 s"):
            await client.execute("stop", timeout_seconds=0.05)
        async with anyio.create_task_group() as task_group:

            async def hang_up() -> None:
                await qemu.read()
                await qemu.stream.aclose()

            await qemu.read()
            task_group.start_soon(hang_up)
            with pytest.raises(QmpError, match="closed its control socket"):
                await client.execute("quit")
        with anyio.fail_after(1):
            await client.closed.wait()
        with pytest.raises(QmpError, match="closed its control socket"):
            await client.execute("quit")


async def test_malformed_message_ends_the_connection_and_says_why() -> None:
    async with connected([]) as (client, qemu):
        await qemu.stream.send(b"garbage\n")
        with anyio.fail_after(1):
            await client.closed.wait()
        with pytest.raises(QmpError, match="malformed"):
            await client.execute("quit")
