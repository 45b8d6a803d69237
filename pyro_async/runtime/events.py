"""What has happened, as it is kept: an append-only, bounded table, written in the transactions it tells of.

One writer, any number of readers. A reader is a cursor: it takes batches from the table at its own pace and sleeps
while there is nothing after the cursor, so a slow one delays nobody and one that was away goes on where it stopped.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

import anyio
import msgspec

from pyro_async.calls import Call
from pyro_async.errors import InvalidArgument
from pyro_async.operations import Event, EventList, ListEvents
from pyro_async.runtime.database import translated

__all__ = ["EVENTS_KEPT", "EVENTS_SCHEMA", "EventLog", "Happened", "answer"]

EVENTS_SCHEMA: Final = """
CREATE TABLE events (
    event_id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    workspace_id TEXT,
    detail BLOB NOT NULL
);
"""
#: How many events are kept at least.
EVENTS_KEPT: Final = 10_000
#: Old ones are dropped when this many more have gathered.
_SLACK: Final = 512
#: Events that a reader takes from the table at a time.
_BATCH: Final = 256
#: Events that an answer carries if the caller names no limit.
_PAGE: Final = 1000

Detail = dict[str, str | int | float | bool | None]


class Happened(NamedTuple):
    """An event that is still to be recorded; see :class:`~pyro_async.operations.Event`."""

    kind: str
    workspace_id: str | None
    detail: Detail = {}  # noqa: RUF012 - never changed


class EventLog:
    """The table of events.

    Args:
        db: the store's connection.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._encode = msgspec.msgpack.Encoder().encode
        self._detail = msgspec.msgpack.Decoder(Detail)
        self._changed = anyio.Event()

    def append(self, happened: Iterable[Happened]) -> None:
        """Adds events to the transaction under way."""
        for kind, workspace_id, detail in happened:
            event_id = self._db.execute(
                "INSERT INTO events (time, kind, workspace_id, detail) VALUES (?, ?, ?, ?)",
                (time.time(), kind, workspace_id, self._encode(detail)),
            ).lastrowid
            if event_id is not None and event_id % _SLACK == 0:
                self._db.execute("DELETE FROM events WHERE event_id <= ?", (event_id - EVENTS_KEPT,))

    def announce(self) -> None:
        """Wakes the readers: a transaction with events was committed."""
        self._changed.set()
        self._changed = anyio.Event()

    def newest(self) -> int:
        """The id of the last event, 0 if there is none."""
        with translated():
            (event_id,) = self._db.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchone()
            return int(event_id)

    def read(self, after: int, limit: int) -> list[Event]:
        """The oldest ``limit`` events behind a cursor."""
        with translated():
            rows = self._db.execute(
                "SELECT event_id, time, kind, workspace_id, detail FROM events"
                " WHERE event_id > ? ORDER BY event_id LIMIT ?",
                (after, limit),
            )
            return [
                Event(
                    event_id=event_id,
                    time=moment,
                    kind=kind,
                    workspace_id=workspace_id,
                    detail=self._detail.decode(detail),
                )
                for event_id, moment, kind, workspace_id, detail in rows
            ]

    async def next(self, after: int) -> list[Event]:
        """Some events behind a cursor, oldest first; waits until there is one."""
        while True:
            changed = self._changed  # taken before the look: what is committed after it sets this one
            if events := self.read(after, _BATCH):
                return events
            await changed.wait()


async def answer(log: EventLog, params: ListEvents, call: Call) -> EventList:
    """Carries out :class:`~pyro_async.operations.ListEvents`.

    Raises:
        InvalidArgument: the cursor comes from other records than these.
    """
    newest = log.newest()
    if params.after > newest:
        raise InvalidArgument(
            f"after: the cursor {params.after} lies behind the last event, {newest}",
            hint="these records were started afresh; go on from 0",
        )
    if not params.follow:
        events = log.read(params.after, params.limit or _PAGE)
        return EventList(events=events, cursor=events[-1].event_id if events else params.after)
    delivered, cursor = 0, params.after
    while True:
        for event in await log.next(cursor):
            await call.emit(event)
            delivered, cursor = delivered + 1, event.event_id
            if delivered == params.limit:
                return EventList(events=[], cursor=cursor)
