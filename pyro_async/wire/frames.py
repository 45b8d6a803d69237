"""Frames: the smallest unit on the wire, ``[u32 length][u32 stream][u8 type]`` little-endian, then ``length`` bytes."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from pyro_async.errors import ProtocolError

__all__ = ["CHANNELS", "HEADER", "MAX_DATA", "MAX_PAYLOAD", "Frame", "FrameDecoder", "FrameType"]

HEADER: Final = struct.Struct("<IIB")
_HEADER_SIZE: Final = HEADER.size

#: Hard limit of any payload in bytes: room for a result with both outputs inline, and for any argument list of Linux.
MAX_PAYLOAD: Final = 16 * 1024 * 1024
#: Largest payload of a data frame in bytes: big enough to amortise its handling, small enough to share the link fairly.
MAX_DATA: Final = 256 * 1024
#: Number of data channels a stream can tell apart.
CHANNELS: Final = 16


class FrameType(IntEnum):
    """What a payload is. Data frames of channel ``n`` have type ``DATA + n``."""

    HELLO = 1
    OPEN = 2
    MESSAGE = 3
    CREDIT = 4
    EOF = 5
    CANCEL = 6
    END = 7
    DATA = 16


class Frame(NamedTuple):
    """One frame as it stands on the wire; ``kind`` is not yet checked."""

    kind: int
    stream_id: int
    payload: bytes


class FrameDecoder:
    """Cuts a byte stream into frames.

    Chunks are kept in a list until a frame is complete, so a large frame that arrives in many small pieces is copied
    once. At most one frame's payload is ever held back.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = _HEADER_SIZE

    def unparsed(self) -> bytes:
        """The bytes received since the last complete frame."""
        return b"".join(self._chunks)

    def feed(self, data: bytes) -> list[Frame]:
        """Takes the next bytes and returns the frames they complete.

        Raises:
            ProtocolError: a header announces a payload above MAX_PAYLOAD. :meth:`unparsed` then starts at that header.
        """
        self._held += len(data)
        if self._held < self._needed:
            self._chunks.append(data)
            return []
        if self._chunks:
            self._chunks.append(data)
            data = b"".join(self._chunks)
            self._chunks.clear()
        frames: list[Frame] = []
        append, unpack = frames.append, HEADER.unpack_from
        position, size, needed = 0, len(data), _HEADER_SIZE
        while size - position >= _HEADER_SIZE:
            length, stream_id, kind = unpack(data, position)
            if length > MAX_PAYLOAD:
                self._chunks.append(data[position:])
                self._held = size - position
                raise ProtocolError(f"a frame announces {length} bytes, above the limit of {MAX_PAYLOAD}")
            needed = _HEADER_SIZE + length
            end = position + needed
            if end > size:
                break
            append(Frame(kind, stream_id, data[position + _HEADER_SIZE : end]))
            position = end
            needed = _HEADER_SIZE
        self._needed = needed
        self._held = size - position
        if position < size:
            self._chunks.append(data[position:])
        return frames
