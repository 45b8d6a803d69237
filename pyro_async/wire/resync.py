"""Finding the first frame on a byte stream that has no connections, such as a virtio serial port.

A host that died in mid frame leaves half of it in the guest's queue, and the guest's half-sent frame reaches the next
host. So before the first frame the host sends ``MARKER + epoch`` with a random epoch, and the agent, which discards
everything up to the marker, answers with the epoch; the host discards everything up to that. The marker begins with an
impossible frame length, so an agent that did not notice the break fails on it at once and starts over from there.
Harmless on streams that do have connections.
"""

from __future__ import annotations

import os
from typing import Final

import anyio
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteStream

from pyro_async.errors import LinkLost

__all__ = ["EPOCH_SIZE", "MARKER", "Seeker", "accept_epoch", "start_epoch"]

MARKER: Final = b"\xff\xff\xff\xffPYRO-RESYNC\x00"
EPOCH_SIZE: Final = 16


class Seeker:
    """Finds ``pattern`` in a byte stream, in whatever pieces it comes.

    Args:
        pattern: what to look for.
        extra: how many bytes after the pattern must have arrived too.
    """

    def __init__(self, pattern: bytes, extra: int = 0) -> None:
        self._pattern = pattern
        self._extra = extra
        self._held = b""

    def feed(self, data: bytes) -> bytes | None:
        """Takes the next bytes; returns None while the pattern is incomplete, else all that follows it."""
        self._held += data
        at = self._held.find(self._pattern)
        if at < 0:
            self._held = self._held[-(len(self._pattern) - 1) :]
            return None
        rest = self._held[at + len(self._pattern) :]
        if len(rest) < self._extra:
            self._held = self._held[at:]
            return None
        return rest


async def start_epoch(stream: ByteStream) -> ByteStream:
    """The host's side: returns the stream positioned at the agent's first frame.

    Waits as long as the agent takes; the caller sets the deadline.

    Raises:
        LinkLost: the stream ended.
    """
    epoch = os.urandom(EPOCH_SIZE)
    try:
        await stream.send(MARKER + epoch)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
        raise LinkLost("the connection ended while synchronising") from error
    return _positioned(stream, await _seek(stream, Seeker(epoch), b""))


async def accept_epoch(stream: ByteStream, already: bytes = b"") -> ByteStream:
    """The agent's side: returns the stream positioned at the host's first frame.

    Args:
        stream: the byte stream.
        already: bytes that were read from it before but are not consumed yet.

    Raises:
        LinkLost: the stream ended.
    """
    rest = await _seek(stream, Seeker(MARKER, EPOCH_SIZE), already)
    # A marker directly behind the epoch is a host that tried again: only its newest attempt counts.
    while rest[EPOCH_SIZE:].startswith(MARKER) and len(rest) >= 2 * EPOCH_SIZE + len(MARKER):
        rest = rest[EPOCH_SIZE + len(MARKER) :]
    try:
        await stream.send(rest[:EPOCH_SIZE])
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
        raise LinkLost("the connection ended while synchronising") from error
    return _positioned(stream, rest[EPOCH_SIZE:])


async def _seek(stream: ByteStream, seeker: Seeker, data: bytes) -> bytes:
    while (rest := seeker.feed(data)) is None:
        try:
            data = await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise LinkLost("the connection ended while synchronising") from error
    return rest


def _positioned(stream: ByteStream, rest: bytes) -> ByteStream:
    if not rest:
        return stream
    buffered = BufferedByteStream(stream)
    buffered.feed_data(rest)
    return buffered
