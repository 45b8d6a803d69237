"""Pages of a command's output, as text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from pyro_async.operations import ExecPage, OutputPiece, ReadExec
from pyro_async.runtime.output import Journal, Reader, Record
from pyro_async.runtime.relay import check_cursor
from pyro_async.runtime.store import ExecRecord
from pyro_async.wire.guest import STDERR, STDOUT

__all__ = ["read_page"]


def read_page(record: ExecRecord, journal: Journal, params: ReadExec) -> ExecPage:
    """The output from a cursor on, cut at a character's end.

    Raises:
        InvalidArgument: the cursor is behind the end.
    """
    check_cursor(journal, params.cursor)
    cursor = max(params.cursor, journal.begin)
    records = list(_records(journal, cursor, params.max_bytes))
    behind = records[-1].end if records else cursor
    text = _Text()
    for each in records:
        text.add(each.channel, each.data)
    complete = record.ended and behind == journal.end
    return ExecPage(
        workspace_id=record.workspace_id,
        exec_id=record.exec_id,
        cursor=cursor,
        next_cursor=behind - text.finish(complete=complete),
        begin=journal.begin,
        end=journal.end,
        output=[OutputPiece(stream="stdout" if channel == STDOUT else "stderr", text=t) for channel, t in text.pieces],
        truncated=cursor > params.cursor,
        ended=record.ended,
    )


def _records(journal: Journal, cursor: int, size: int) -> Iterator[Record]:
    """At most ``size`` bytes of output; the last record may be cut."""
    reader = Reader(journal, cursor)
    while size and (records := reader.read(size)):
        for record in records:
            data = record.data[:size]
            size -= len(data)
            yield record._replace(data=data, end=record.end - len(record.data) + len(data))
            if not size:
                return


class _Text:
    """Pieces of output of both streams, decoded; a character may be spread over several."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, str]] = []
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {STDOUT: decoder("replace"), STDERR: decoder("replace")}
        self._last = STDOUT

    def add(self, channel: int, data: bytes) -> None:
        self._last = channel
        self._append(channel, self._decoders[channel].decode(data))

    def finish(self, *, complete: bool) -> int:
        """Ends the text; returns how many bytes at its end belong to a character that is not complete yet."""
        pending = 0
        for channel, decoder in self._decoders.items():
            if channel == self._last and not complete:
                pending = len(decoder.getstate()[0])
            else:
                self._append(channel, decoder.decode(b"", final=True))
        return pending

    def _append(self, channel: int, text: str) -> None:
        if self.pieces and self.pieces[-1][0] == channel:
            self.pieces[-1] = (channel, self.pieces[-1][1] + text)
        elif text:
            self.pieces.append((channel, text))
