"""QEMU's control protocol (QMP): one JSON object a line, replies matched by id, events in between.

Specification: https://www.qemu.org/docs/master/interop/qmp-spec.html. The ``qemu.qmp`` package runs on asyncio only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
import msgspec
from anyio.abc import ByteStream

__all__ = ["QmpClient", "QmpCodec", "QmpError", "QmpEvent", "QmpReply"]

REPLY_SECONDS = 10.0
_MAX_LINE = 1 << 20
_CLOSED = "QEMU closed its control socket"


class QmpError(Exception):
    """QEMU refused a command, did not answer in time, broke the protocol, or is gone."""


class QmpEvent(msgspec.Struct, frozen=True):
    """Something that happened in QEMU; the specification lists the names and their data."""

    name: str
    data: dict[str, object] = {}


class QmpReply(msgspec.Struct, frozen=True):
    """Answer to the command ``id``: what it returned, or the text of its error."""

    id: int
    value: object = None
    error: str | None = None


class QmpGreeting(msgspec.Struct, frozen=True):
    """QEMU's first line."""


class _Error(msgspec.Struct):
    desc: str


class _Line(msgspec.Struct):
    greeting: object = msgspec.field(name="QMP", default=msgspec.UNSET)
    event: str | None = None
    data: dict[str, object] = {}
    id: int | None = None
    value: object = msgspec.field(name="return", default=None)
    error: _Error | None = None


class QmpCodec:
    """The protocol without I/O: bytes in, messages out. A QEMU that its guest took over may send anything."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._decoder = msgspec.json.Decoder(_Line)

    def receive(self, data: bytes) -> list[QmpGreeting | QmpEvent | QmpReply]:
        """Returns the messages that ``data`` completes; raises QmpError at the first malformed one."""
        self._pending += data
        *lines, rest = bytes(self._pending).split(b"\n")
        if len(rest) > _MAX_LINE:
            raise QmpError("QEMU sent an endless line")
        self._pending = bytearray(rest)
        return [self._decode(line) for line in lines if not line.isspace() and line]

    def _decode(self, text: bytes) -> QmpGreeting | QmpEvent | QmpReply:
        try:
            line = self._decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise QmpError(f"QEMU sent a malformed message: {error}") from error
        if line.greeting is not msgspec.UNSET:
            return QmpGreeting()
        if line.event is not None:
            return QmpEvent(line.event, line.data)
        if line.id is None:
            raise QmpError(f"QEMU reported: {line.error.desc if line.error else 'a reply to nothing'}")
        return QmpReply(line.id, line.value, line.error.desc if line.error else None)

    @staticmethod
    def encode(command: str, arguments: Mapping[str, object], number: int) -> bytes:
        """The line that executes ``command``."""
        return msgspec.json.encode({"execute": command, "arguments": arguments, "id": number}) + b"\n"


class _Waiter:
    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.reply: QmpReply | None = None


class QmpClient:
    """A QMP connection: :meth:`run` reads, in a task of its own; :meth:`negotiate` comes before the first command.

    ``on_event`` is called by the reader and must not block. Who opened ``stream`` closes it.
    """

    def __init__(self, stream: ByteStream, on_event: Callable[[QmpEvent], None]) -> None:
        self.closed = anyio.Event()
        self._stream = stream
        self._on_event = on_event
        self._waiters: dict[int, _Waiter] = {}
        self._next_id = 1
        self._sending = anyio.Lock()
        self._greeted = anyio.Event()
        self._failure: str | None = None

    async def run(self) -> None:
        """Reads until QEMU hangs up or breaks the protocol; then every waiter fails and ``closed`` is set."""
        codec = QmpCodec()
        try:
            while True:
                for message in codec.receive(await self._stream.receive()):
                    self._handle(message)
        except QmpError as error:
            self._failure = str(error)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self._failure = self._failure or _CLOSED
            self.closed.set()
            self._greeted.set()
            for waiter in self._waiters.values():
                waiter.answered.set()

    async def negotiate(self) -> None:
        """Waits for the greeting and leaves the negotiation mode; raises QmpError. No deadline of its own."""
        await self._greeted.wait()
        await self.execute("qmp_capabilities")

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_seconds: float = REPLY_SECONDS
    ) -> object:
        """Executes one command and returns what it returned; raises QmpError. Any number of tasks may call."""
        if self._failure is not None:
            raise QmpError(self._failure)
        number, self._next_id = self._next_id, self._next_id + 1
        waiter = self._waiters[number] = _Waiter()
        try:
            with anyio.fail_after(timeout_seconds):
                await self._send(QmpCodec.encode(command, arguments or {}, number))
                await waiter.answered.wait()
        except TimeoutError:
            raise QmpError(f"QEMU did not answer {command} within {timeout_seconds:g} s") from None
        finally:
            del self._waiters[number]
        if waiter.reply is None:
            raise self._closed()
        if waiter.reply.error is not None:
            raise QmpError(f"QEMU refused {command}: {waiter.reply.error}")
        return waiter.reply.value

    def _closed(self) -> QmpError:
        return QmpError(self._failure or _CLOSED)

    async def _send(self, line: bytes) -> None:
        try:
            async with self._sending:
                # Shielded: half a line would spoil every later command. It is short, and the socket's buffer is not.
                with anyio.CancelScope(shield=True), anyio.fail_after(REPLY_SECONDS):
                    await self._stream.send(line)
        except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._closed() from error

    def _handle(self, message: QmpGreeting | QmpEvent | QmpReply) -> None:
        match message:
            case QmpGreeting():
                self._greeted.set()
            case QmpEvent():
                self._on_event(message)
            case QmpReply() if waiter := self._waiters.get(message.id):
                waiter.reply = message
                waiter.answered.set()
