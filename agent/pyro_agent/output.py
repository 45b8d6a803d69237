"""The output of one command that the host has not stored yet. No I/O here.

Chunks stay in the order in which they were produced and move from *unsent* to *sent*; the host's acknowledgements drop
them from the front. When the connection is lost, everything not acknowledged becomes unsent again, from the offsets the
host names: so a lost link neither loses nor doubles a byte.
"""

from __future__ import annotations

from collections import deque

from pyro_async.errors import InvalidArgument
from pyro_async.wire.guest import STDERR, STDOUT

__all__ = ["RetainedOutput"]

#: Stands for a control message among the sent chunks: it uses up credit but carries no output.
_MESSAGE = -1


class RetainedOutput:
    """Output of one command between its pipes and the host's disk.

    Args:
        limit: bytes after which :attr:`full` asks the producer to wait. More than a stream's window, so that a full
            buffer always has something unsent: its sender then waits for credit and learns what was acknowledged.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sent: deque[tuple[int, bytes | memoryview, int]] = deque()
        self._unsent: deque[tuple[int, bytes | memoryview, int]] = deque()
        self._base = {STDOUT: 0, STDERR: 0}  # offset of each channel's first retained byte
        self._acknowledged = 0
        #: Bytes of output held.
        self.retained = 0

    @property
    def room(self) -> int:
        """Bytes that may still be appended."""
        return self._limit - self.retained

    @property
    def full(self) -> bool:
        """Whether the producer must wait."""
        return self.retained >= self._limit

    def append(self, channel: int, data: bytes) -> None:
        """Adds output of the command."""
        self._unsent.append((channel, data, len(data)))
        self.retained += len(data)

    def take(self) -> tuple[int, bytes | memoryview] | None:
        """Returns the next chunk to send, which then counts as sent; None if there is none."""
        if not self._unsent:
            return None
        chunk = self._unsent.popleft()
        self._sent.append(chunk)
        return chunk[0], chunk[1]

    def sent_message(self, size: int) -> None:
        """Notes a control message of ``size`` bytes sent between the chunks."""
        self._sent.append((_MESSAGE, b"", size))

    def acknowledge(self, granted: int) -> None:
        """Drops what the host has stored.

        Args:
            granted: bytes, messages included, that the host has acknowledged since the stream began.
        """
        step = granted - self._acknowledged
        self._acknowledged = granted
        while step > 0:
            channel, data, size = self._sent.popleft()
            done = min(size, step)
            step -= done
            if channel != _MESSAGE:
                self.retained -= done
                self._base[channel] += done
            if done < size:
                self._sent.appendleft((channel, memoryview(data)[done:], size - done))

    def rewind(self, stdout_offset: int | None = None, stderr_offset: int | None = None) -> None:
        """Starts over on a new stream: all that the host has not stored becomes unsent.

        Args:
            stdout_offset: bytes of STDOUT the host has stored; None if it does not say: all that is retained is sent.
            stderr_offset: the same for STDERR.

        Raises:
            InvalidArgument: an offset lies before what was acknowledged or behind what was produced.
        """
        chunks = [chunk for chunk in (*self._sent, *self._unsent) if chunk[0] != _MESSAGE]
        skip: dict[int, int] = {}
        for channel, name, offset in ((STDOUT, "stdout", stdout_offset), (STDERR, "stderr", stderr_offset)):
            base = self._base[channel]
            end = base + sum(chunk[2] for chunk in chunks if chunk[0] == channel)
            if offset is not None and not base <= offset <= end:
                raise InvalidArgument(f"cannot resume {name} at byte {offset}: bytes {base} to {end} are held")
            skip[channel] = 0 if offset is None else offset - base
        self._sent.clear()
        self._unsent.clear()
        self._acknowledged = 0
        for channel, data, size in chunks:
            done = min(size, skip[channel])
            if done:
                skip[channel] -= done
                self._base[channel] += done
                self.retained -= done
                data = memoryview(data)[done:]
            if done < size:
                self._unsent.append((channel, data, size - done))
