"""The multiplexer without I/O: bytes in, events out; calls in, bytes out.

A *stream* is opened by one side with a request, carries data (in channels) and messages both ways, each side may close
its own direction once (EOF), and the responder ends it with exactly one terminal frame. The opener may ask for that end
with CANCEL. Data and messages consume *credit*: a sender may have at most a window of bytes on a stream that the
receiver has not granted back, so nothing grows without bound and one slow reader never blocks another stream.

Whatever a peer sends, the outcome is events or a ProtocolError, after which the connection is to be dropped.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from pyro_async.errors import LinkLost, ProtocolError
from pyro_async.wire.frames import CHANNELS, HEADER, MAX_DATA, FrameDecoder, FrameType

__all__ = ["WINDOW", "Cancel", "Credit", "Data", "End", "Eof", "Event", "Greeting", "Message", "Mux", "Opened", "Role"]

#: Initial credit of a stream and direction, in bytes.
WINDOW: Final = 1024 * 1024
#: Credit is returned in steps of this size: few frames, and the sender never starves.
_GRANT_STEP: Final = WINDOW // 4
#: Streams a peer may have open at once.
MAX_STREAMS: Final = 16384

#: Plain numbers, because arithmetic with the members of an IntEnum costs more than the rest of a small frame.
_DATA: Final = int(FrameType.DATA)
_LAST_CHANNEL: Final = _DATA + CHANNELS - 1


class Role(Enum):
    """Which side of a connection this is; it decides who uses odd stream ids."""

    CLIENT = 1
    SERVER = 2


class Greeting(msgspec.Struct, gc=False):
    """The peer's HELLO payload, still encoded."""

    payload: bytes


class Opened(msgspec.Struct, gc=False):
    """The peer opened a stream; ``payload`` is the encoded request."""

    stream_id: int
    payload: bytes


class Data(msgspec.Struct, gc=False):
    """Bytes on a channel of a stream."""

    stream_id: int
    channel: int
    data: bytes


class Message(msgspec.Struct, gc=False):
    """An encoded control message on a stream."""

    stream_id: int
    payload: bytes


class Eof(msgspec.Struct, gc=False):
    """The peer will send no more data or messages on this stream."""

    stream_id: int


class Cancel(msgspec.Struct, gc=False):
    """The opener wants the responder to end this stream soon."""

    stream_id: int


class Credit(msgspec.Struct, gc=False):
    """The peer took in ``size`` more bytes: as many more may be sent."""

    stream_id: int
    size: int


class End(msgspec.Struct, gc=False):
    """The responder ended the stream; ``payload`` is the encoded ending."""

    stream_id: int
    payload: bytes


Event = Greeting | Opened | Data | Message | Eof | Cancel | Credit | End


class _Stream:
    """Book-keeping of one live stream."""

    __slots__ = ("eof_received", "eof_sent", "opener", "receivable", "sendable", "ungranted")

    def __init__(self, *, opener: bool) -> None:
        self.opener = opener  # we opened it, so the peer ends it
        self.sendable = WINDOW
        self.receivable = WINDOW
        self.ungranted = 0
        self.eof_sent = False
        self.eof_received = False


class Mux:
    """State of one connection.

    Args:
        role: CLIENT opens streams with odd ids, SERVER with even ones.
        accepts: whether the peer may open streams at all.
    """

    def __init__(self, role: Role, *, accepts: bool) -> None:
        self._next_id = 1 if role is Role.CLIENT else 2
        self._peer_parity = 0 if role is Role.CLIENT else 1
        self._last_peer_id = 0
        self._accepts = accepts
        self._peer_streams = 0
        self._greeted = False
        self._streams: dict[int, _Stream] = {}
        self._decoder = FrameDecoder()
        self._out: list[bytes | memoryview] = []
        self.pending = 0

    # --- sending -----------------------------------------------------------------------------------------------------

    def _emit(self, kind: int, stream_id: int, payload: bytes | memoryview = b"") -> None:
        size = len(payload)
        self._out.append(HEADER.pack(size, stream_id, kind))
        if size:
            self._out.append(payload)
        self.pending += HEADER.size + size

    def bytes_to_send(self) -> bytes:
        """Takes everything queued so far, in order."""
        data = b"".join(self._out)
        self._out.clear()
        self.pending = 0
        return data

    def greet(self, payload: bytes) -> None:
        """Queues our HELLO; must come before anything else."""
        self._emit(FrameType.HELLO, 0, payload)

    def open(self, payload: bytes) -> int:
        """Opens a stream and returns its id."""
        stream_id = self._next_id
        self._next_id += 2
        if stream_id > 0xFFFF_FFFF:
            raise LinkLost("this connection has used up its stream ids", hint="reconnect")
        self._streams[stream_id] = _Stream(opener=True)
        self._emit(FrameType.OPEN, stream_id, payload)
        return stream_id

    def is_open(self, stream_id: int) -> bool:
        """Whether the stream has not ended yet."""
        return stream_id in self._streams

    def sendable(self, stream_id: int) -> int:
        """Bytes that may be sent on the stream now."""
        stream = self._streams.get(stream_id)
        return stream.sendable if stream else 0

    def send_data(self, stream_id: int, data: bytes | memoryview, channel: int = 0) -> None:
        """Queues a data frame; ``data`` must not be empty and fit into :meth:`sendable` and MAX_DATA."""
        stream = self._sending(stream_id)
        size = len(data)
        if size > stream.sendable or size > MAX_DATA:
            raise ValueError(f"{size} bytes exceed the credit of {stream.sendable} or the frame limit of {MAX_DATA}")
        stream.sendable -= size
        self._emit(_DATA + channel, stream_id, data)

    def send_message(self, stream_id: int, payload: bytes) -> None:
        """Queues a control message; it must fit into :meth:`sendable`."""
        stream = self._sending(stream_id)
        if len(payload) > stream.sendable:
            raise ValueError(f"{len(payload)} bytes exceed the credit of {stream.sendable}")
        stream.sendable -= len(payload)
        self._emit(FrameType.MESSAGE, stream_id, payload)

    def send_eof(self, stream_id: int) -> None:
        """Closes our direction."""
        self._sending(stream_id).eof_sent = True
        self._emit(FrameType.EOF, stream_id)

    def cancel(self, stream_id: int) -> None:
        """As the opener: asks for the end. Does nothing if it has already come."""
        if stream_id in self._streams:
            self._emit(FrameType.CANCEL, stream_id)

    def end(self, stream_id: int, payload: bytes) -> None:
        """As the responder: ends the stream."""
        stream = self._streams.pop(stream_id)
        if stream.opener:
            raise ValueError("only the responder ends a stream")
        self._peer_streams -= 1
        self._emit(FrameType.END, stream_id, payload)

    def grant(self, stream_id: int, size: int) -> None:
        """Returns credit for ``size`` received bytes; frames are sent in larger steps. Does nothing after the end."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.ungranted += size
        if stream.ungranted >= _GRANT_STEP:
            stream.receivable += stream.ungranted
            self._emit(FrameType.CREDIT, stream_id, stream.ungranted.to_bytes(4, "little"))
            stream.ungranted = 0

    def _sending(self, stream_id: int) -> _Stream:
        stream = self._streams[stream_id]
        if stream.eof_sent:
            raise ValueError("this direction of the stream is closed")
        return stream

    # --- receiving ---------------------------------------------------------------------------------------------------

    def unparsed(self) -> bytes:
        """Bytes received since the last complete frame; after a ProtocolError in a header, from that header on."""
        return self._decoder.unparsed()

    def receive_data(self, data: bytes) -> list[Event]:
        """Takes bytes from the peer and returns what they mean.

        Raises:
            ProtocolError: the peer broke the protocol; the connection cannot be used any more.
        """
        events: list[Event] = []
        streams = self._streams
        for kind, stream_id, payload in self._decoder.feed(data):
            stream = streams.get(stream_id)
            if stream is not None and kind >= _DATA:
                size = len(payload)
                if not 0 < size <= stream.receivable or kind > _LAST_CHANNEL or stream.eof_received:
                    raise ProtocolError(_data_fault(kind, size, stream))
                stream.receivable -= size
                events.append(Data(stream_id, kind - _DATA, payload))
            else:
                event = self._control(kind, stream_id, payload, stream)
                if event is not None:
                    events.append(event)
        return events

    def _control(self, kind: int, stream_id: int, payload: bytes, stream: _Stream | None) -> Event | None:
        if not self._greeted or kind == FrameType.HELLO:
            if self._greeted or kind != FrameType.HELLO:
                raise ProtocolError("the connection must start with exactly one greeting")
            self._greeted = True
            return Greeting(payload)
        if kind == FrameType.OPEN:
            return self._opened(stream_id, payload)
        if stream is None:
            if stream_id % 2 == self._peer_parity and 0 < stream_id <= self._last_peer_id:
                return None  # sent by the opener before it saw our end
            raise ProtocolError(f"a frame of type {kind} for stream {stream_id}, which is not open")
        return self._on_stream(kind, stream_id, payload, stream)

    def _opened(self, stream_id: int, payload: bytes) -> Event:
        if not self._accepts:
            raise ProtocolError("the peer opened a stream, but may not")
        if stream_id % 2 != self._peer_parity or stream_id <= self._last_peer_id:
            raise ProtocolError(f"the peer opened stream {stream_id} out of order")
        if self._peer_streams >= MAX_STREAMS:
            raise ProtocolError(f"the peer has more than {MAX_STREAMS} streams open")
        self._last_peer_id = stream_id
        self._peer_streams += 1
        self._streams[stream_id] = _Stream(opener=False)
        return Opened(stream_id, payload)

    def _on_stream(self, kind: int, stream_id: int, payload: bytes, stream: _Stream) -> Event:
        if kind == FrameType.CREDIT:
            size = int.from_bytes(payload, "little")
            if len(payload) != 4 or stream.sendable + size > WINDOW:
                raise ProtocolError("the peer granted credit for bytes it was never sent")
            stream.sendable += size
            return Credit(stream_id, size)
        if kind == FrameType.END and stream.opener:
            del self._streams[stream_id]
            return End(stream_id, payload)
        if kind == FrameType.CANCEL and not stream.opener:
            return Cancel(stream_id)
        if stream.eof_received or kind not in (FrameType.MESSAGE, FrameType.EOF):
            raise ProtocolError(f"a frame of type {kind} is not allowed on stream {stream_id} now")
        if kind == FrameType.EOF:
            stream.eof_received = True
            return Eof(stream_id)
        if not 0 < len(payload) <= stream.receivable:
            raise ProtocolError("the peer sent an empty message, or one beyond its credit")
        stream.receivable -= len(payload)
        return Message(stream_id, payload)


def _data_fault(kind: int, size: int, stream: _Stream) -> str:
    if kind > _LAST_CHANNEL:
        return f"a frame of unknown type {kind}"
    if stream.eof_received:
        return "data after the end of that direction"
    if not size:
        return "empty data, which no credit would bound"
    return f"{size} bytes of data beyond the credit of {stream.receivable}"
