"""One multiplexed connection over a byte stream: a reader that never awaits a handler and a single writer.

Everything a connection starts lives in the task that runs :meth:`Connection.run`. When the byte stream ends, however it
ends, every waiter wakes with the connection's failure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
from anyio import TASK_STATUS_IGNORED, get_cancelled_exc_class
from anyio.abc import ByteStream, TaskGroup, TaskStatus

from pyro_async.errors import (
    InternalError,
    InvalidArgument,
    LinkLost,
    ProtocolError,
    PyroError,
    VersionMismatch,
)
from pyro_async.wire.codec import PROTOCOL_VERSION, Hello, Request, decode, encode
from pyro_async.wire.frames import MAX_PAYLOAD
from pyro_async.wire.mux import WINDOW, Cancel, Credit, Data, End, Eof, Event, Greeting, Message, Mux, Opened, Role
from pyro_async.wire.pulse import Pulse
from pyro_async.wire.stream import Item, Stream, outcome, raw

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
#: How long an orderly close may take to write out what is queued.
CLOSE_GRACE: Final = 2.0

#: Serves one stream that the peer opened: what it returns, or the PyroError it raises, ends the stream.
Handler = Callable[[Stream, Request], Awaitable[object]]


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
        self.mux = Mux(role, accepts=handler is not None)
        self._streams: dict[int, Stream] = {}
        self._queued = Pulse()
        self._drained = Pulse()
        self._down = anyio.Event()
        self._scope = anyio.CancelScope()
        self._writing = False
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
        self.raise_if_down()
        payload = encode(Request(method, raw(params)))
        if len(payload) > MAX_PAYLOAD:
            raise InvalidArgument(
                f"the request has {len(payload)} bytes, above the limit of {MAX_PAYLOAD}",
                hint="pass large input through stdin or a file",
            )
        stream_id = self.mux.open(payload)
        stream = self._streams[stream_id] = Stream(self, stream_id)
        self.wake_writer()
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
        while (self.mux.pending or self._writing) and self.failure is None:
            await self.wait_drained()

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
        return self.mux.unparsed()

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def _greet(self) -> list[Event]:
        """Exchanges greetings; returns the events that came along with the peer's."""
        try:
            self.mux.greet(encode(self._hello))
            await self._stream.send(self.mux.bytes_to_send())
            events: list[Event] = []
            while not events:
                events = self.mux.receive_data(await self._stream.receive(_READ_SIZE))
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
                self._dispatch(self.mux.receive_data(data), tasks)
                if self.mux.pending:
                    self.wake_writer()
        except anyio.EndOfStream:
            self._go_down(LinkLost("the other end closed the connection"))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self._go_down(LinkLost("the connection broke"))
        except ProtocolError as error:
            self._go_down(error)

    async def _write(self) -> None:
        while True:
            if not self.mux.pending:
                await self._queued.wait()
            while self.mux.pending:
                data = self.mux.bytes_to_send()
                self._writing = True
                try:
                    await self._stream.send(data)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                    self._go_down(LinkLost("the connection broke"))
                    self._scope.cancel()
                    return
                self._writing = False
                self._drained.wake()

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
                known.credited(event.size)
            else:
                if isinstance(event, End):
                    del streams[event.stream_id]
                known.deliver(event)

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

    def wake_writer(self) -> None:
        """Something is queued."""
        self._queued.wake()

    async def wait_drained(self) -> None:
        """Waits until the writer has taken what is queued."""
        self.raise_if_down()
        await self._drained.wait()

    def forget(self, stream_id: int) -> None:
        """The stream has ended on our side."""
        self._streams.pop(stream_id, None)

    def raise_if_down(self) -> None:
        """Raises the failure, if there is one."""
        if self.failure is not None:
            raise type(self.failure)(self.failure.message, hint=self.failure.hint)

    def _go_down(self, error: PyroError) -> None:
        """Records the first failure and wakes every waiter."""
        if self.failure is not None:
            return
        self.failure = error
        self._down.set()
        self._drained.wake()
        for stream in self._streams.values():
            stream.wake()
        self._streams.clear()
