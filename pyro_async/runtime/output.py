"""Output of commands, kept on the host in files: written by one task each, read by any number, from any cursor.

A journal is a sequence of records ``[u8 channel][u32 length]`` and bytes, in segment files named by the offset at
which they start and by how much of each channel lies before it. A *cursor* is an offset into the journal at a
record's boundary. All journals of a workspace share a budget: when it is exceeded the oldest segments go, but not
those that a live reader has yet to read; then the writer waits for its reader instead, and so does the command in the
guest. It never waits for the reader of another command: one segment of its own it may always have.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from pyro_async.errors import HostDiskFull
from pyro_async.wire.guest import STDERR, STDOUT

__all__ = ["OUTPUT_BUDGET", "Excerpt", "Journal", "OutputStore", "Record"]

#: Bytes of output kept of one workspace.
OUTPUT_BUDGET: Final = 256 * 1024 * 1024
#: A segment is closed when it has reached this size; the unit in which old output is dropped.
SEGMENT_SIZE: Final = 8 * 1024 * 1024
#: Bytes read from a journal at a time.
_READ_SIZE: Final = 1024 * 1024
_HEADER: Final = struct.Struct("<BI")


class Record(NamedTuple):
    """A piece of output as it was written; ``end`` is the cursor just behind it."""

    channel: int
    data: bytes
    end: int


class _Segment:
    __slots__ = ("journal", "path", "size", "start")

    def __init__(self, journal: Journal, start: int, path: Path, size: int = 0) -> None:
        self.journal = journal
        self.start = start
        self.path = path
        self.size = size


class OutputStore:
    """The journals of one workspace.

    Args:
        directory: holds the segment files; made when first needed.
        budget: bytes kept over all journals.
    """

    def __init__(self, directory: Path, budget: int = OUTPUT_BUDGET) -> None:
        self._directory = directory
        self._budget = budget
        self._journals: dict[str, Journal] = {}
        self._segments: deque[_Segment] = deque()
        self._total = 0
        self._loaded = False
        self._progress = anyio.Event()

    def journal(self, exec_id: str, *, writing: bool = False) -> Journal:
        """The journal of a command: a new one, or what was written before, by this process or an earlier one.

        Args:
            exec_id: the command.
            writing: whether more will be written, so that readers wait for it until :meth:`Journal.close`.
        """
        if not self._loaded:
            self._load()
        journal = self._journals.get(exec_id)
        if journal is None:
            journal = Journal(self, exec_id)
        journal.closed = journal.closed and not writing
        return journal

    def _load(self) -> None:
        """Takes stock of what an earlier process left; a record it did not finish is cut off."""
        self._loaded = True
        for path in sorted(self._directory.glob("*.log"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
            exec_id, start, stdout, stderr = path.stem.split("-")
            journal = self._journals.setdefault(exec_id, Journal(self, exec_id))
            segment = _Segment(journal, int(start, 16), path, path.stat().st_size)
            journal._adopt(segment, {STDOUT: int(stdout, 16), STDERR: int(stderr, 16)})
            self._segments.append(segment)
        for journal in self._journals.values():
            journal._cut_off()
        self._total = sum(segment.size for segment in self._segments)

    def _grow(self, journal: Journal) -> _Segment:
        self._directory.mkdir(parents=True, exist_ok=True)
        counts = journal.counts
        name = f"{journal.exec_id}-{journal.end:016x}-{counts[STDOUT]:x}-{counts[STDERR]:x}.log"
        segment = _Segment(journal, journal.end, self._directory / name)
        self._segments.append(segment)
        self._journals[journal.exec_id] = journal
        return segment

    async def _make_room(self, journal: Journal, size: int) -> None:
        """Drops old segments until ``size`` more bytes fit; waits while the journal's own readers hold the rest."""
        while self._total + size > self._budget:
            victim = next((segment for segment in self._segments if segment.journal._droppable(segment)), None)
            if victim is None:
                if len(journal._segments) <= 1:
                    return
                await self._progress.wait()
                continue
            victim.path.unlink(missing_ok=True)
            self._segments.remove(victim)
            self._total -= victim.size
            if victim.journal._drop(victim):
                del self._journals[victim.journal.exec_id]

    def _read_on(self) -> None:
        self._progress.set()
        self._progress = anyio.Event()


class Journal:
    """The output of one command.

    Attributes:
        counts: bytes written so far, by channel.
        end: the cursor behind the last record.
        closed: whether no more records will come.
    """

    def __init__(self, store: OutputStore, exec_id: str) -> None:
        self._store = store
        self.exec_id = exec_id
        self.counts = {STDOUT: 0, STDERR: 0}
        self.end = 0
        self._segments: deque[_Segment] = deque()
        self._file: int | None = None
        self._more = anyio.Event()
        self.closed = True
        self._readers: dict[object, int] = {}

    @property
    def begin(self) -> int:
        """The oldest cursor that can still be read."""
        return self._segments[0].start if self._segments else self.end

    async def append(self, channel: int, data: bytes) -> None:
        """Writes one record; waits only while the budget is held by live readers.

        Raises:
            HostDiskFull: nothing of this record was kept.
        """
        size = _HEADER.size + len(data)
        if self._store._total + size > self._store._budget:
            await self._store._make_room(self, size)
        try:
            segment = self._segment()
            assert self._file is not None
            written = os.writev(self._file, (_HEADER.pack(channel, len(data)), data))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            written = 0
        if written != size:
            if self._file is not None:
                os.ftruncate(self._file, self._segments[-1].size)
            raise HostDiskFull("no space left for a command's output", hint="free space on the home's disk")
        segment.size += size
        self._store._total += size
        self.end += size
        self.counts[channel] += len(data)
        self._notify()

    def _segment(self) -> _Segment:
        """The segment to write to; starts a new one where the last is full."""
        if self._segments and self._segments[-1].size >= SEGMENT_SIZE and self._file is not None:
            os.close(self._file)
            self._file = None
        if self._file is None:
            if not self._segments or self._segments[-1].size >= SEGMENT_SIZE:
                self._segments.append(self._store._grow(self))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._segments[-1].path, flags, 0o600)
        return self._segments[-1]

    def close(self) -> None:
        """No more records will come; readers end when they have read the last."""
        self.closed = True
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._notify()

    def records(self) -> Iterator[Record]:
        """Everything that is kept now."""
        cursor = self.begin
        while cursor < self.end:
            for record in self._read(cursor):
                cursor = record.end
                yield record

    async def follow(self, cursor: int = 0) -> AsyncGenerator[Record, None]:
        """Records from ``cursor`` on, as they are written, until the journal is closed.

        A cursor older than :attr:`begin` goes on there. What this reader has not taken yet is not dropped, so close the
        generator (``contextlib.aclosing``) when it is left early.
        """
        token = object()
        try:
            while True:
                cursor = max(cursor, self.begin)
                self._readers[token] = cursor
                while cursor < self.end:
                    for record in self._read(cursor):
                        yield record
                        cursor = self._readers[token] = record.end
                    self._store._read_on()
                if self.closed:
                    return
                await self._more.wait()
        finally:
            self._readers.pop(token, None)
            self._store._read_on()

    def _read(self, cursor: int) -> list[Record]:
        """Some whole records from ``cursor`` on, at least one."""
        segment = next(segment for segment in self._segments if cursor < segment.start + segment.size)
        with segment.path.open("rb") as file:
            file.seek(cursor - segment.start)
            data = file.read(min(_READ_SIZE, segment.start + segment.size - cursor))
        return list(_parse(data, cursor))

    def _notify(self) -> None:
        self._more.set()
        self._more = anyio.Event()

    def _droppable(self, segment: _Segment) -> bool:
        if segment is self._segments[-1] and not self.closed:
            return False
        return all(cursor >= segment.start + segment.size for cursor in self._readers.values())

    def _drop(self, segment: _Segment) -> bool:
        """Forgets a segment; returns whether nothing of the journal is left."""
        self._segments.remove(segment)
        return self.closed and not self._segments

    def _adopt(self, segment: _Segment, counts: dict[int, int]) -> None:
        self._segments.append(segment)
        self.counts = counts

    def _cut_off(self) -> None:
        """Finds the end of what an earlier process wrote; only its last segment can hold an unfinished record."""
        last = self._segments[-1]
        data, size = last.path.read_bytes(), 0
        for record in _parse(data, 0):
            size = record.end
            self.counts[record.channel] += len(record.data)
        if size < len(data):
            os.truncate(last.path, size)
        last.size = size
        self.end = last.start + size


class Excerpt:
    """The head and the tail of a byte stream, whatever its length.

    Args:
        limit: bytes kept, half of them of the head.
    """

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._size = 0

    @property
    def truncated(self) -> bool:
        """Whether anything was left out."""
        return self._size > len(self._head) + self._tail_size or self._tail_size > self._half

    def add(self, data: bytes) -> None:
        """Takes the next bytes."""
        self._size += len(data)
        if len(self._head) < self._half:
            room = self._half - len(self._head)
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail.append(data)
            self._tail_size += len(data)
            while self._tail_size - len(self._tail[0]) >= self._half:
                self._tail_size -= len(self._tail.popleft())

    def text(self) -> str:
        """What was kept, as text, with a line that says how much is missing."""
        tail = b"".join(self._tail)
        if self.truncated:
            tail = tail[-self._half :]
            missing = self._size - len(self._head) - len(tail)
            return f"{_decoded(self._head)}\n[… {missing} bytes left out …]\n{_decoded(tail)}"
        return _decoded(bytes(self._head) + tail)


def _decoded(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")


def _parse(data: bytes, cursor: int) -> Iterator[Record]:
    position = 0
    while len(data) - position >= _HEADER.size:
        channel, length = _HEADER.unpack_from(data, position)
        end = position + _HEADER.size + length
        if end > len(data):
            return
        yield Record(channel, data[position + _HEADER.size : end], cursor + end)
        position = end
