"""One multiplexed connection over a byte stream: a reader that never awaits a handler and a single writer.

Everything a connection starts lives in the task that runs :meth:`Connection.run`. When the byte stream ends, however it
ends, every waiter wakes with the connection's failure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
import msgspec
from anyio import TASK_STATUS_IGNORED, get_cancelled_exc_class
from anyio.abc import ByteStream, TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint_if_cancelled

from pyro_async.errors import (
    InternalError,
    InvalidArgument,
    LinkLost,
    ProtocolError,
    PyroError,
    VersionMismatch,
    error_from_failure,
)
from pyro_async.wire.codec import PROTOCOL_VERSION, Ending, Hello, Request, decode, encode
from pyro_async.wire.frames import MAX_DATA, MAX_PAYLOAD
from pyro_async.wire.mux import WINDOW, Cancel, Credit, Data, End, Eof, Event, Greeting, Message, Mux, Opened, Role

__all__ = [
    "WINDOW",
    "Cancel",
    "Connection",
    "Data",
    "End",
    "Eof",
    "Handler",
    "Item",
    "Message",
    "Role",
    "Stream",
    "outcome",
]

T = TypeVar("T")

#: Bytes asked of the byte stream at a time.
_READ_SIZE: Final = 256 * 1024
#: Senders wait while more than this is queued for the writer: bounds memory and keeps the link fair.
_HIGH_WATER: Final = 512 * 1024
#: How long an orderly close may take to write out what is queued.
CLOSE_GRACE: Final = 2.0

#: What :meth:`Stream.receive` yields.
Item = Data | Message | Eof | Cancel | End
#: Serves one stream that the peer opened: what it returns, or the PyroError it raises, ends the stream.
Handler = Callable[["Stream", Request], Awaitable[object]]


class Stream:
    """One side of a stream. One task at a time may send, one may receive."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self._connection = connection
        self._mux = connection._mux
        self._id = stream_id
        self._items: deque[Item] = deque()
        self._arrived: anyio.Event | None = None
        self._sendable: anyio.Event | None = None
        #: Bytes of data and messages that the peer has acknowledged on this stream, in the order they were sent.
        self.granted = 0
        #: Whether the opener has asked for the end.
        self.cancelled = False
        #: Called by the reader when the opener asks for the end; must not block.
        self.on_cancel: Callable[[], object] | None = None

    @property
    def ended(self) -> bool:
        """Whether the stream's end was sent or received, or its connection is gone."""
        return not self._mux.is_open(self._id) or self._connection.failure is not None

    # --- sending -----------------------------------------------------------------------------------------------------

    async def send(self, data: bytes | memoryview, channel: int = 0) -> None:
        """Sends all of ``data``; waits for credit and for the writer.

        Raises:
            LinkLost: the connection is gone, or the peer ended the stream.
        """
        view: bytes | memoryview = data
        while True:
            room = await self._wait_sendable(1 if len(view) else 0)
            if len(view) <= room and len(view) <= MAX_DATA:
                self._mux.send_data(self._id, view, channel)
                break
            size = min(room, MAX_DATA)
            view = memoryview(view)
            self._mux.send_data(self._id, view[:size], channel)
            view = view[size:]
            self._connection._wake_writer()
        self._connection._wake_writer()

    async def send_message(self, message: object) -> int:
        """Sends a control message; waits for credit. Returns its size in bytes, as it counts towards ``granted``."""
        payload = encode(message)
        if len(payload) > WINDOW:
            raise InvalidArgument(f"a message of {len(payload)} bytes is above the limit of {WINDOW}")
        await self._wait_sendable(len(payload))
        self._mux.send_message(self._id, payload)
        self._connection._wake_writer()
        return len(payload)

    async def _wait_sendable(self, size: int) -> int:
        """Waits until ``size`` bytes of credit are there and the writer keeps up; returns the credit."""
        await checkpoint_if_cancelled()
        while True:
            self._connection._raise_if_down()
            if not self._mux.is_open(self._id):
                raise LinkLost("the other end has ended this stream")
            room = self._mux.sendable(self._id)
            if room >= size and self._mux.pending < _HIGH_WATER:
                return room
            if room >= size:
                await self._connection._wait_drained()
            else:
                self._sendable = anyio.Event()
                await self._sendable.wait()

    def send_eof(self) -> None:
        """Closes our direction. Does nothing once the stream has ended."""
        if not self.ended:
            self._mux.send_eof(self._id)
            self._connection._wake_writer()

    def cancel(self) -> None:
        """As the opener: asks the responder to end the stream; the end still arrives."""
        if not self.ended:
            self._mux.cancel(self._id)
            self._connection._wake_writer()

    def end(self, result: object = None) -> None:
        """As the responder: ends the stream with a result."""
        self._end(Ending(None, _raw(result)))

    def fail(self, error: PyroError) -> None:
        """As the responder: ends the stream with an error."""
        self._end(Ending(error.to_failure()))

    def _end(self, ending: Ending) -> None:
        if not self.ended:
            payload = encode(ending)
            if len(payload) > MAX_PAYLOAD:
                too_large = InternalError(f"the result has {len(payload)} bytes, above the limit of {MAX_PAYLOAD}")
                payload = encode(Ending(too_large.to_failure()))
            self._mux.end(self._id, payload)
            self._connection._forget(self._id)
            self._wake()
            self._connection._wake_writer()

    def grant(self, size: int) -> None:
        """Acknowledges ``size`` received bytes as consumed or stored, which lets the peer send as many more."""
        if not self.ended:
            self._mux.grant(self._id, size)
            if self._mux.pending:
                self._connection._wake_writer()

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def receive(self) -> Item:
        """Waits for the next item; after :class:`End` there is none.

        Raises:
            LinkLost, ProtocolError: the connection is gone.
        """
        await checkpoint_if_cancelled()
        while not self._items:
            self._connection._raise_if_down()
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._items.popleft()

    async def result(self, kind: type[T]) -> T:
        """Waits for the end, dropping everything before it, and returns the decoded result or raises its error."""
        while True:
            item = await self.receive()
            if isinstance(item, End):
                return outcome(item, kind)
            if isinstance(item, Data):
                self.grant(len(item.data))
            elif isinstance(item, Message):
                self.grant(len(item.payload))

    def _deliver(self, item: Item) -> None:
        self._items.append(item)
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None
        if isinstance(item, End) and self._sendable is not None:
            self._sendable.set()
        elif isinstance(item, Cancel):
            self.cancelled = True
            if self.on_cancel is not None:
                self.on_cancel()

    def _credited(self, size: int) -> None:
        self.granted += size
        if self._sendable is not None:
            self._sendable.set()
            self._sendable = None

    def _wake(self) -> None:
        for event in (self._arrived, self._sendable):
            if event is not None:
                event.set()


class Connection:
    """A connection between two peers.

    Args:
        stream: the byte stream; the connection closes it.
        role: CLIENT or SERVER; one of each.
        hello: what to tell the peer about this side.
        handler: serves streams the peer opens; None refuses them.

    Attributes:
        peer: the peer's greeting, known once :meth:`run` has started.
        failure: why the connection is down, None while it is up.
    """

    def __init__(self, stream: ByteStream, *, role: Role, hello: Hello, handler: Handler | None = None) -> None:
        self._stream = stream
        self._hello = hello
        self._handler = handler
        self._mux = Mux(role, accepts=handler is not None)
        self._streams: dict[int, Stream] = {}
        self._wakeup = anyio.Event()
        self._drained = anyio.Event()
        self._down = anyio.Event()
        self._scope = anyio.CancelScope()
        self.peer = Hello()
        self.failure: PyroError | None = None

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Serves the connection until it ends; reports started when the peer's greeting has come.

        Never raises for what the peer or the byte stream does after that: see ``failure``.

        Raises:
            LinkLost, ProtocolError, VersionMismatch: before it is started.
        """
        try:
            with self._scope:
                early = await self._greet()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write, name="writer")
                    task_status.started()
                    self._dispatch(early, tasks)
                    await self._read(tasks)
                    tasks.cancel_scope.cancel()
        except PyroError as error:
            self._go_down(error)
            raise
        finally:
            self._go_down(LinkLost("the connection was closed"))
            with anyio.move_on_after(CLOSE_GRACE, shield=True):
                await anyio.aclose_forcefully(self._stream)

    def open(self, method: str, params: object = None) -> Stream:
        """Opens a stream with a request. Does not block.

        Raises:
            LinkLost, ProtocolError: the connection is down.
            InvalidArgument: a parameter cannot be encoded.
        """
        self._raise_if_down()
        payload = encode(Request(method, _raw(params)))
        if len(payload) > MAX_PAYLOAD:
            raise InvalidArgument(
                f"the request has {len(payload)} bytes, above the limit of {MAX_PAYLOAD}",
                hint="pass large input through stdin or a file",
            )
        stream_id = self._mux.open(payload)
        stream = self._streams[stream_id] = Stream(self, stream_id)
        self._wake_writer()
        return stream

    async def call(self, method: str, params: object, kind: type[T]) -> T:
        """Opens a stream and waits for its result; if the caller is cancelled, the responder is asked to give up."""
        stream = self.open(method, params)
        try:
            return await stream.result(kind)
        except get_cancelled_exc_class():
            stream.cancel()
            raise

    async def flush(self) -> None:
        """Waits until everything queued has been handed to the byte stream."""
        while self._mux.pending and self.failure is None:
            await self._wait_drained()

    async def wait_down(self) -> PyroError:
        """Waits until the connection is down and returns why."""
        await self._down.wait()
        assert self.failure is not None
        return self.failure

    def close(self, error: PyroError | None = None) -> None:
        """Ends :meth:`run`, with ``error`` as the failure that waiters see.

        What is queued but not yet written is lost, see :meth:`flush`.
        """
        self._go_down(error or LinkLost("the connection was closed"))
        self._scope.cancel()

    def unparsed(self) -> bytes:
        """After a failure: received bytes that belong to no complete frame (where a peer that restarted begins)."""
        return self._mux.unparsed()

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def _greet(self) -> list[Event]:
        """Exchanges greetings; returns the events that came along with the peer's."""
        try:
            self._mux.greet(encode(self._hello))
            await self._stream.send(self._mux.bytes_to_send())
            events: list[Event] = []
            while not events:
                events = self._mux.receive_data(await self._stream.receive(_READ_SIZE))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise LinkLost("the connection ended before the other end said hello") from error
        greeting = events.pop(0)
        assert isinstance(greeting, Greeting)  # the mux lets nothing else come first
        self.peer = decode(greeting.payload, Hello)
        if self.peer.protocol != PROTOCOL_VERSION:
            raise VersionMismatch(
                f"the other end ({self.peer.software or 'unknown'}) speaks protocol {self.peer.protocol}, "
                f"this one ({self._hello.software or 'unknown'}) {PROTOCOL_VERSION}",
                hint="use the same version of pyro on both ends; `pyro daemon stop` ends an old daemon",
            )
        return events

    async def _read(self, tasks: TaskGroup) -> None:
        try:
            while True:
                data = await self._stream.receive(_READ_SIZE)
                self._dispatch(self._mux.receive_data(data), tasks)
                if self._mux.pending:
                    self._wake_writer()
        except anyio.EndOfStream:
            self._go_down(LinkLost("the other end closed the connection"))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self._go_down(LinkLost("the connection broke"))
        except ProtocolError as error:
            self._go_down(error)

    async def _write(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup = anyio.Event()
            while self._mux.pending:
                data = self._mux.bytes_to_send()
                try:
                    await self._stream.send(data)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                    self._go_down(LinkLost("the connection broke"))
                    self._scope.cancel()
                    return
                self._drained.set()
                self._drained = anyio.Event()

    def _dispatch(self, events: list[Event], tasks: TaskGroup) -> None:
        streams = self._streams
        for event in events:
            if isinstance(event, Opened):
                stream = streams[event.stream_id] = Stream(self, event.stream_id)
                tasks.start_soon(self._serve, stream, event.payload, name=f"stream {event.stream_id}")
                continue
            assert not isinstance(event, Greeting)  # the mux allows only the first
            known = streams.get(event.stream_id)
            if known is None:
                continue  # its end crossed this event
            if isinstance(event, Credit):
                known._credited(event.size)
            else:
                if isinstance(event, End):
                    del streams[event.stream_id]
                known._deliver(event)

    async def _serve(self, stream: Stream, payload: bytes) -> None:
        assert self._handler is not None  # the mux refuses streams otherwise
        try:
            result = await self._handler(stream, decode(payload, Request))
            stream.end(result)
        except PyroError as error:
            stream.fail(error)
        except Exception as error:  # a defect in one handler must not end the others
            stream.fail(InternalError(f"{type(error).__name__}: {error}", hint="this is a defect in pyro"))

    # --- shared with streams -----------------------------------------------------------------------------------------

    def _wake_writer(self) -> None:
        self._wakeup.set()

    async def _wait_drained(self) -> None:
        self._raise_if_down()
        await self._drained.wait()

    def _forget(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)

    def _raise_if_down(self) -> None:
        if self.failure is not None:
            raise type(self.failure)(self.failure.message, hint=self.failure.hint)

    def _go_down(self, error: PyroError) -> None:
        """Records the first failure and wakes every waiter."""
        if self.failure is not None:
            return
        self.failure = error
        self._down.set()
        self._drained.set()
        for stream in self._streams.values():
            stream._wake()
        self._streams.clear()


def outcome(end: End, kind: type[T]) -> T:
    """Decodes a stream's end: returns its result, or raises the error it carries."""
    ending = decode(end.payload, Ending)
    if ending.failure is not None:
        raise error_from_failure(ending.failure)
    return decode(ending.result, kind)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(encode(value))
