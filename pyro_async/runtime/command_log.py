"""The log of a workspace: starts, output and ends of all its commands, from any place on, as they happen.

A place in it is the last command whose start was told, and how far each of those is told that have not ended: so it
can be taken up again exactly, without an order of all output having been kept. Its text, a log's cursor, is
``SEQUENCE[,SEQUENCE:CURSOR]…``. A follower holds nobody up: what is dropped before it was read is told as such.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncGenerator, Iterator
from typing import Final, Literal

from pyro_async.errors import InvalidArgument
from pyro_async.operations import Command, LogDropped, LogEnded, LogEvent, LogOutput, LogStarted
from pyro_async.runtime.commands import Commands
from pyro_async.runtime.output import Reader, Record
from pyro_async.runtime.store import ExecRecord
from pyro_async.wire.guest import STDOUT

__all__ = ["LogFollower"]

_CURSOR: Final = re.compile(r"\d{1,18}(,\d{1,18}:\d{1,18})*")
#: Characters of a command that its start shows.
_COMMAND_CHARS: Final = 1024


class LogFollower:
    """Follows a workspace's log.

    Args:
        commands: of the workspace.
        sequence: of the command to begin behind.

    Attributes:
        cursor: the place behind the last event.
    """

    def __init__(self, commands: Commands, sequence: int) -> None:
        self._commands = commands
        self._sequence = sequence
        self._open: dict[int, _Told] = {}

    @classmethod
    def at(cls, commands: Commands, cursor: str) -> LogFollower:
        """A follower that begins behind the event that carried ``cursor``.

        Raises:
            InvalidArgument: it is none.
        """
        if not _CURSOR.fullmatch(cursor):
            raise InvalidArgument(f"{cursor!r} is not a log's cursor", hint="use one that an event of the log carried")
        first, *rest = cursor.split(",")
        follower = cls(commands, int(first))
        for pair in rest:
            sequence, _, place = pair.partition(":")
            if (record := commands.at(int(sequence))) is not None:
                follower._open[record.sequence] = _Told(commands, record, int(place))
        return follower

    @property
    def cursor(self) -> str:
        return ",".join([str(self._sequence), *(f"{sequence}:{told.cursor}" for sequence, told in self._open.items())])

    async def events(self) -> AsyncGenerator[LogEvent, None]:
        """What happened and happens, until the workspace is deleted; those of one command in their order."""
        while True:
            quiet = True  # then nothing was awaited since, and no news were missed
            for event in self._round():
                quiet = False
                yield event
            if quiet:
                if self._commands.closed:
                    return
                await self._commands.news.wait()

    def _round(self) -> Iterator[LogEvent]:
        """The next start, and of each command that is open what it has printed, and its end."""
        record = self._commands.following(self._sequence)
        if record is not None:
            self._sequence = record.sequence
            self._open[record.sequence] = _Told(self._commands, record, 0)
            yield LogStarted(
                exec_id=record.exec_id,
                sequence=record.sequence,
                command=_shown(record.command),
                started_at=record.started_at,
                cursor=self.cursor,
            )
        for sequence, told in list(self._open.items()):
            ended = self._commands.running(told.exec_id) is None  # before reading, so that then all of it is there
            while records := told.reader.read():
                for each in records:
                    yield from self._output(told, each)
                if not ended:
                    break
            if ended:
                yield from self._skipped(told, told.journal.end)
                del self._open[sequence]
                yield self._end(told)

    def _output(self, told: _Told, record: Record) -> Iterator[LogEvent]:
        yield from self._skipped(told, record.end - len(record.data))
        told.cursor = record.end
        stream: Literal["stdout", "stderr"] = "stdout" if record.channel == STDOUT else "stderr"
        yield LogOutput(exec_id=told.exec_id, stream=stream, data=record.data, cursor=self.cursor)

    def _skipped(self, told: _Told, cursor: int) -> Iterator[LogEvent]:
        if told.cursor < cursor:
            told.cursor = cursor
            yield LogDropped(exec_id=told.exec_id, cursor=self.cursor)

    def _end(self, told: _Told) -> LogEvent:
        end = told.record.exit
        return LogEnded(
            exec_id=told.exec_id,
            exit_code=end.exit_code if end else None,
            timed_out=end.timed_out if end else False,
            cancelled=end.cancelled if end else False,
            cause="lost" if told.record.lost else end.cause if end else None,
            cursor=self.cursor,
        )


class _Told:
    """A command whose start was told and whose end was not; ``cursor`` says how much of its output was."""

    def __init__(self, commands: Commands, record: ExecRecord, cursor: int) -> None:
        self.record = record
        self.exec_id = record.exec_id
        self.journal = commands.journal(record.exec_id)
        self.reader = Reader(self.journal, cursor)
        self.cursor = cursor


def _shown(command: Command) -> str:
    text = command if isinstance(command, str) else shlex.join(command)
    return " ".join(text[:_COMMAND_CHARS].splitlines())
