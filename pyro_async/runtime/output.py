"""Output of commands, kept on the host in files: written by one task each, read by any number, from any cursor.

A journal is a sequence of records ``[u8 channel][u32 length]`` and bytes, in segment files named by how many bytes of
each channel lie before them. A *cursor* counts the bytes of output before a place, both channels together: any number
from 0 to the journal's end is one. All journals of a workspace share a budget: when it is exceeded the oldest segments
go, but not those that a live reader has yet to read; then the writer waits for its reader instead, and so does the
command in the guest. It never waits for the reader of another command: one segment of its own it may always have.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyro_async.errors import HostDiskFull
from pyro_async.wire.guest import STDERR, STDOUT
from pyro_async.wire.pulse import Pulse

__all__ = ["OUTPUT_BUDGET", "Excerpt", "Journal", "OutputStore", "Reader", "Record"]

#: Bytes of output kept of one workspace.
OUTPUT_BUDGET: Final = 256 * 1024 * 1024
#: A segment is closed when it has reached this size; the unit in which old output is dropped.
SEGMENT_SIZE: Final = 8 * 1024 * 1024
#: Journals whose file is kept open for writing; a thousand commands at once must not use up the descriptors.
OPEN_FILES: Final = 64
#: Bytes read from a journal at a time.
_READ_SIZE: Final = 1024 * 1024
#: Bytes of a segment between two marks: so far a reader has to walk to find its place.
_MARK_STEP: Final = 128 * 1024
_HEADER: Final = struct.Struct("<BI")


class Record(NamedTuple):
    """A piece of output as it was written; ``end`` is the cursor just behind it."""

    channel: int
    data: bytes
    end: int


class _Segment:
    """One file of a journal: ``begin`` and ``end`` are cursors, ``size`` the file's bytes.

    Marks are pairs of a cursor and the position in the file where its record starts.
    """

    __slots__ = ("begin", "end", "journal", "marks", "path", "size")

    def __init__(self, journal: Journal, begin: int, path: Path, size: int = 0) -> None:
        self.journal = journal
        self.begin = self.end = begin
        self.path = path
        self.size = size
        self.marks = [(begin, 0)]

    def mark(self, cursor: int, position: int) -> None:
        """Notes where a record starts, if that saves a later reader anything."""
        if position >= self.marks[-1][1] + _MARK_STEP:
            self.marks.append((cursor, position))

    def find(self, cursor: int) -> tuple[int, int]:
        """The last mark that is not behind ``cursor``."""
        return self.marks[bisect(self.marks, cursor, key=lambda mark: mark[0]) - 1]


class OutputStore:
    """The journals of one workspace.

    Args:
        directory: holds the segment files; made when first needed.
        budget: bytes kept over all journals.

    Attributes:
        news: wakes whenever a journal grows or is closed.
    """

    def __init__(self, directory: Path, budget: int = OUTPUT_BUDGET) -> None:
        self._directory = directory
        self._budget = budget
        self._journals: dict[str, Journal] = {}
        self._segments: deque[_Segment] = deque()
        self._total = 0
        self._loaded = False
        self._open: dict[Journal, None] = {}  # those whose file is open, oldest first
        self._progress = Pulse()
        self.news = Pulse()

    def journal(self, exec_id: str, *, writing: bool = False, written: tuple[int, int] = (0, 0)) -> Journal:
        """The journal of a command: a new one, or what was written before, by this process or an earlier one.

        Args:
            exec_id: the command.
            writing: whether more will be written, so that readers wait for it until :meth:`Journal.close`.
            written: bytes of stdout and stderr known to have been written, though nothing may be kept of them.
        """
        if not self._loaded:
            self._load()
        journal = self._journals.get(exec_id)
        if journal is None:
            journal = Journal(self, exec_id)
            journal.counts = {STDOUT: written[0], STDERR: written[1]}
        journal.closed = journal.closed and not writing
        return journal

    def _load(self) -> None:
        """Takes stock of what an earlier process left; a record it did not finish is cut off."""
        self._loaded = True
        for path in sorted(self._directory.glob("*.log"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
            exec_id, _, stdout, stderr = path.stem.split("-")
            journal = self._journals.setdefault(exec_id, Journal(self, exec_id))
            counts = {STDOUT: int(stdout, 16), STDERR: int(stderr, 16)}
            segment = _Segment(journal, sum(counts.values()), path, path.stat().st_size)
            journal._adopt(segment, counts)
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
        self._progress.wake()

    def _opened(self, journal: Journal) -> None:
        """A journal has opened its file: those that did so long ago close theirs, and open it again when they write."""
        self._open[journal] = None
        if len(self._open) > OPEN_FILES:
            next(iter(self._open))._close_file()

    def _closed(self, journal: Journal) -> None:
        self._open.pop(journal, None)


class Journal:
    """The output of one command.

    Attributes:
        counts: bytes written so far, by channel.
        closed: whether no more records will come.
    """

    def __init__(self, store: OutputStore, exec_id: str) -> None:
        self._store = store
        self.exec_id = exec_id
        self.counts = {STDOUT: 0, STDERR: 0}
        self._segments: deque[_Segment] = deque()
        self._file: int | None = None
        self._more = Pulse()
        self.closed = True
        self._readers: set[Reader] = set()

    @property
    def begin(self) -> int:
        """The oldest cursor that can still be read."""
        return self._segments[0].begin if self._segments else self.end

    @property
    def end(self) -> int:
        """The cursor behind the last record."""
        return self.counts[STDOUT] + self.counts[STDERR]

    @property
    def written(self) -> tuple[int, int]:
        """Bytes of stdout and stderr so far."""
        return self.counts[STDOUT], self.counts[STDERR]

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
        segment.mark(segment.end, segment.size)
        segment.size += size
        segment.end += len(data)
        self._store._total += size
        self.counts[channel] += len(data)
        self.wake()

    def _segment(self) -> _Segment:
        """The segment to write to; starts a new one where the last is full."""
        full = not self._segments or self._segments[-1].size >= SEGMENT_SIZE
        if full:
            self._close_file()
        if self._file is None:
            if full:
                self._segments.append(self._store._grow(self))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._segments[-1].path, flags, 0o600)
            self._store._opened(self)
        return self._segments[-1]

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._store._closed(self)

    def close(self) -> None:
        """No more records will come; readers end when they have read the last."""
        self.closed = True
        self._close_file()
        self.wake()

    def wake(self) -> None:
        """Wakes those who wait for news of this command."""
        self._more.wake()
        self._store.news.wake()

    def records(self) -> Iterator[Record]:
        """Everything that is kept now."""
        reader = Reader(self)
        while records := reader.read():
            yield from records

    async def follow(self, cursor: int = 0) -> AsyncGenerator[Record, None]:
        """Records from ``cursor`` on, as they are written, until the journal is closed.

        The first one may be the rest of a record. A cursor older than :attr:`begin` goes on there: then the first
        record begins behind ``cursor``. What this reader has not taken yet is not dropped, so close the generator
        (``contextlib.aclosing``) when it is left early.
        """
        reader = Reader(self, cursor)
        self._readers.add(reader)
        try:
            while True:
                while records := reader.read():
                    behind = reader.cursor
                    for record in records:
                        reader.cursor = record.end - len(record.data)
                        yield record
                    reader.cursor = behind
                    self._store._read_on()
                if self.closed:
                    return
                await self._more.wait()
        finally:
            self._readers.discard(reader)
            self._store._read_on()

    def _droppable(self, segment: _Segment) -> bool:
        if segment is self._segments[-1] and not self.closed:
            return False
        return all(reader.cursor >= segment.end for reader in self._readers)

    def _drop(self, segment: _Segment) -> bool:
        """Forgets a segment; returns whether nothing of the journal is left."""
        self._segments.remove(segment)
        return self.closed and not self._segments

    def _adopt(self, segment: _Segment, counts: dict[int, int]) -> None:
        if self._segments:
            self._segments[-1].end = segment.begin
        self._segments.append(segment)
        self.counts = counts

    def _cut_off(self) -> None:
        """Finds the end of what an earlier process wrote; only its last segment can hold an unfinished record."""
        last = self._segments[-1]
        data, size = last.path.read_bytes(), 0
        for record in _parse(data, last.begin):
            last.mark(last.end, size)
            size += _HEADER.size + len(record.data)
            last.end = record.end
            self.counts[record.channel] += len(record.data)
        if size < len(data):
            os.truncate(last.path, size)
        last.size = size


class Reader:
    """A place in a journal, read on from without waiting.

    Args:
        journal: what is read.
        cursor: where to begin; not behind the journal's end.

    Attributes:
        cursor: where :meth:`read` goes on.
    """

    def __init__(self, journal: Journal, cursor: int = 0) -> None:
        self._journal = journal
        self.cursor = cursor
        self._segment: _Segment | None = None
        self._place = (0, 0)  # a cursor and its position in the segment's file

    def read(self, limit: int = _READ_SIZE) -> list[Record]:
        """The next records, of about ``limit`` bytes but at least one; none at the journal's end.

        Where output was dropped it goes on with the oldest that is kept. Calls may be far apart.
        """
        try:
            return self._read(limit)
        except FileNotFoundError:
            return []  # the workspace is being deleted

    def _read(self, limit: int) -> list[Record]:
        segment = next((segment for segment in self._journal._segments if self.cursor < segment.end), None)
        if segment is None:
            return []
        self.cursor = max(self.cursor, segment.begin)
        if segment is not self._segment or self._place[0] != self.cursor:
            self._segment, self._place = segment, segment.find(self.cursor)
        records: list[Record] = []
        with segment.path.open("rb") as file:
            while not records:
                begin, position = self._place
                file.seek(position)
                for record in _parse(file.read(min(limit, segment.size - position)), begin):
                    segment.mark(*self._place)
                    self._place = (record.end, self._place[1] + _HEADER.size + len(record.data))
                    if record.end > self.cursor:
                        records.append(_rest(record, self.cursor))
                        self.cursor = record.end
                if self._place[1] == position:
                    limit *= 2  # the record is larger
        return records


def _rest(record: Record, cursor: int) -> Record:
    """A record without what lies before ``cursor``."""
    return record._replace(data=record.data[max(0, cursor - record.end + len(record.data)) :])


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


def _parse(data: bytes, begin: int) -> Iterator[Record]:
    """The whole records in ``data``, the first of which begins at cursor ``begin``."""
    position = 0
    while len(data) - position >= _HEADER.size:
        channel, length = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        if position + length > len(data):
            return
        begin += length
        yield Record(channel, data[position : position + length], begin)
        position += length
