"""One side of a multiplexed stream: what a handler or a caller holds in its hands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from pyro_async.errors import InternalError, InvalidArgument, LinkLost, PyroError, error_from_failure
from pyro_async.wire.codec import Ending, decode, encode
from pyro_async.wire.frames import MAX_DATA, MAX_PAYLOAD
from pyro_async.wire.mux import WINDOW, Cancel, Data, End, Eof, Message
from pyro_async.wire.pulse import Pulse

if TYPE_CHECKING:
    from pyro_async.wire.connection import Connection

__all__ = ["Item", "Stream", "outcome", "raw"]

T = TypeVar("T")

#: Senders wait while more than this is queued for the writer: bounds memory and keeps the link fair.
_HIGH_WATER: Final = 512 * 1024
#: Pieces of data that wait are joined up to this size, so that many tiny ones cost little more memory than their bytes.
_JOINED_SIZE: Final = 1024
#: What :meth:`Stream.receive` yields.
Item = Data | Message | Eof | Cancel | End


class Stream:
    """One side of a stream. One task at a time may send, one may receive."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self._connection = connection
        self._mux = connection.mux
        self._id = stream_id
        self._items: deque[Item] = deque()
        self._arrived = Pulse()
        self._sendable = Pulse()
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
        """Sends all of ``data``, which may be nothing; waits for credit and for the writer.

        Raises:
            LinkLost: the connection is gone, or the peer ended the stream.
        """
        view: bytes | memoryview = data
        while len(view):
            room = await self._wait_sendable(1)
            if len(view) <= room and len(view) <= MAX_DATA:
                self._mux.send_data(self._id, view, channel)
                break
            size = min(room, MAX_DATA)
            view = memoryview(view)
            self._mux.send_data(self._id, view[:size], channel)
            view = view[size:]
            self._connection.wake_writer()
        self._connection.wake_writer()

    async def send_message(self, message: object) -> int:
        """Sends a control message; waits for credit. Returns its size in bytes, as it counts towards ``granted``."""
        payload = encode(message)
        if len(payload) > WINDOW:
            raise InvalidArgument(f"a message of {len(payload)} bytes is above the limit of {WINDOW}")
        await self._wait_sendable(len(payload))
        self._mux.send_message(self._id, payload)
        self._connection.wake_writer()
        return len(payload)

    async def _wait_sendable(self, size: int) -> int:
        """Waits until ``size`` bytes of credit are there and the writer keeps up; returns the credit."""
        await checkpoint_if_cancelled()
        while True:
            self._connection.raise_if_down()
            if not self._mux.is_open(self._id):
                raise LinkLost("the other end has ended this stream")
            room = self._mux.sendable(self._id)
            if room >= size and self._mux.pending < _HIGH_WATER:
                return room
            if room >= size:
                await self._connection.wait_drained()
            else:
                await self._sendable.wait()

    def send_eof(self) -> None:
        """Closes our direction. Does nothing once the stream has ended."""
        if not self.ended:
            self._mux.send_eof(self._id)
            self._connection.wake_writer()

    def cancel(self) -> None:
        """As the opener: asks the responder to end the stream; the end still arrives."""
        if not self.ended:
            self._mux.cancel(self._id)
            self._connection.wake_writer()

    def end(self, result: object = None) -> None:
        """As the responder: ends the stream with a result."""
        self._end(Ending(None, raw(result)))

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
            self._connection.forget(self._id)
            self.wake()
            self._connection.wake_writer()

    def grant(self, size: int) -> None:
        """Acknowledges ``size`` received bytes as consumed or stored, which lets the peer send as many more."""
        if not self.ended:
            self._mux.grant(self._id, size)
            if self._mux.pending:
                self._connection.wake_writer()

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def receive(self) -> Item:
        """Waits for the next item; after :class:`End` there is none.

        Raises:
            LinkLost, ProtocolError: the connection is gone.
        """
        await checkpoint_if_cancelled()
        while not self._items:
            self._connection.raise_if_down()
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

    def deliver(self, item: Item) -> None:
        if self._items and isinstance(item, Data) and _joined(self._items[-1], item):
            return
        self._items.append(item)
        self._arrived.wake()
        if isinstance(item, End):
            self._sendable.wake()
        elif isinstance(item, Cancel):
            self.cancelled = True
            if self.on_cancel is not None:
                self.on_cancel()

    def credited(self, size: int) -> None:
        self.granted += size
        self._sendable.wake()

    def wake(self) -> None:
        self._arrived.wake()
        self._sendable.wake()


def _joined(last: Item, item: Data) -> bool:
    """Appends a piece of data to the last item that waits, if both are small; says whether it did."""
    if not isinstance(last, Data) or last.channel != item.channel:
        return False
    if len(last.data) + len(item.data) > _JOINED_SIZE:
        return False
    last.data += item.data
    return True


def outcome(end: End, kind: type[T]) -> T:
    """Decodes a stream's end: returns its result, or raises the error it carries."""
    ending = decode(end.payload, Ending)
    if ending.failure is not None:
        raise error_from_failure(ending.failure)
    return decode(ending.result, kind)


def raw(value: object) -> msgspec.Raw:
    """A value, encoded for a place that holds any."""
    return msgspec.Raw(encode(value))
