"""What survives the runtime: workspaces, commands and events, in SQLite.

One transaction per transition, with the events that tell of it. Write-ahead logging without a sync per commit: a commit
survives the death of the process at any moment, and after a power cut the VMs are gone anyway, so what matters then is
only that the file is consistent. Calls take some ten microseconds and are made from the event loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pyro_async.errors import HomeUnusable
from pyro_async.operations import Command
from pyro_async.runtime.database import translated
from pyro_async.runtime.events import EVENTS_SCHEMA, EventLog, Happened
from pyro_async.runtime.lifecycle import Phase
from pyro_async.vmm.driver import MachineSpec
from pyro_async.vmm.process import ProcessIdentity
from pyro_async.wire.guest import Exec, ExecExit

__all__ = ["ExecRecord", "Store", "WorkspaceRecord"]

#: What leads from each version of the schema to the next.
_MIGRATIONS: Final = (
    """
CREATE TABLE workspaces (workspace_id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE execs (
    workspace_id TEXT NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    exec_id TEXT NOT NULL,
    ended INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (workspace_id, sequence)
) WITHOUT ROWID;
CREATE UNIQUE INDEX execs_by_id ON execs (workspace_id, exec_id);
CREATE INDEX execs_running ON execs (workspace_id) WHERE NOT ended;
""",
    EVENTS_SCHEMA,
    """
ALTER TABLE execs ADD COLUMN idempotency_key TEXT;
CREATE UNIQUE INDEX execs_by_key ON execs (workspace_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
""",
)
_SCHEMA_VERSION: Final = len(_MIGRATIONS)


class WorkspaceRecord(msgspec.Struct, kw_only=True):
    """One workspace as it is kept.

    Attributes:
        digest: of the environment's image.
        machine: the VMM process while there is one.
        spec: what that VM was started with.
        nonce: the guest agent's, to tell a reconnect from a reboot.
        ephemeral: belongs to one call and dies with it.
        expires_at: when it is deleted, None for never.
        idle_stop_seconds: after so long without activity it is stopped, None for never.
    """

    workspace_id: str
    name: str | None
    labels: dict[str, str]
    environment: str
    digest: str
    phase: Phase
    vcpu_count: int
    mem_mib: int
    created_at: float
    last_activity_at: float
    failure: str | None = None
    driver: str = ""
    machine: ProcessIdentity | None = None
    spec: MachineSpec | None = None
    nonce: bytes = b""
    ephemeral: bool = False
    expires_at: float | None = None
    idle_stop_seconds: int | None = None


class ExecRecord(msgspec.Struct, kw_only=True):
    """One command as it is kept.

    Attributes:
        exit: how it ended, None while it runs.
        lost: its end will never be known.
        idempotency_key: the caller's name for it, if it gave one.
        fingerprint: of what runs, to tell a retry from another command under the same key.
        written: bytes of stdout and stderr, known once it has ended.
        call: starts it, kept until the guest is known to have it, if nobody may be there to start it again.
    """

    workspace_id: str
    exec_id: str
    sequence: int
    command: Command
    cwd: str
    started_at: float
    stdin: bool = False
    exit: ExecExit | None = None
    lost: bool = False
    idempotency_key: str | None = None
    fingerprint: bytes = b""
    written: tuple[int, int] = (0, 0)
    call: Exec | None = None

    @property
    def ended(self) -> bool:
        return self.exit is not None or self.lost


class Store:
    """All records of one home.

    Writing methods take the events to be recorded along with the change.

    Attributes:
        events: those recorded so far.

    Raises:
        HomeUnusable: the database cannot be opened, is of a newer version, or damaged; the last from every method.
        HostDiskFull: from every writing method.
    """

    def __init__(self, path: Path) -> None:
        self._encode = msgspec.msgpack.Encoder(enc_hook=str).encode
        self._workspace = msgspec.msgpack.Decoder(WorkspaceRecord, dec_hook=_decode_path)
        self._exec = msgspec.msgpack.Decoder(ExecRecord)
        with translated(), ExitStack() as stack:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            stack.callback(self._db.close)
            self._prepare()
            stack.pop_all()

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise HomeUnusable(
                f"the home was written by a newer pyro (schema {version}, this one knows {_SCHEMA_VERSION})",
                hint="upgrade pyro, or use another PYRO_HOME",
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        for number, migration in enumerate(_MIGRATIONS[version:], start=version + 1):
            self._db.executescript(f"BEGIN; {migration} PRAGMA user_version = {number}; COMMIT")
        self.events = EventLog(self._db)

    def close(self) -> None:
        """Closes the database; the store cannot be used afterwards."""
        self._db.close()

    def workspaces(self) -> list[WorkspaceRecord]:
        """All workspaces, oldest first."""
        with translated():
            rows = self._db.execute("SELECT record FROM workspaces")
            return sorted((self._workspace.decode(blob) for (blob,) in rows), key=lambda record: record.created_at)

    def save_workspace(self, record: WorkspaceRecord, *happened: Happened) -> None:
        """Inserts or replaces a workspace."""
        with self._transaction(happened) as db:
            db.execute(
                "INSERT INTO workspaces VALUES (?, ?) ON CONFLICT DO UPDATE SET record = excluded.record",
                (record.workspace_id, self._encode(record)),
            )

    def delete_workspace(self, workspace_id: str, *happened: Happened) -> None:
        """Removes a workspace and its commands."""
        with self._transaction(happened) as db:
            db.execute("DELETE FROM workspaces WHERE workspace_id = ?", (workspace_id,))

    def save_exec(self, record: ExecRecord, *happened: Happened) -> None:
        """Inserts or replaces a command; of two with one idempotency key the second is refused."""
        with self._transaction(happened) as db:
            db.execute(
                "INSERT INTO execs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (workspace_id, sequence)"
                " DO UPDATE SET record = excluded.record, ended = excluded.ended",
                (
                    record.workspace_id,
                    record.sequence,
                    record.exec_id,
                    record.ended,
                    self._encode(record),
                    record.idempotency_key,
                ),
            )

    def delete_exec(self, record: ExecRecord, *happened: Happened) -> None:
        """Removes a command that never came to run."""
        with self._transaction(happened) as db:
            db.execute(
                "DELETE FROM execs WHERE workspace_id = ? AND sequence = ?", (record.workspace_id, record.sequence)
            )

    def record(self, *happened: Happened) -> None:
        """Records events that come with no change of workspaces or commands."""
        with self._transaction(happened):
            pass

    @contextmanager
    def _transaction(self, happened: Sequence[Happened]) -> Iterator[sqlite3.Connection]:
        with translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self.events.append(happened)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself gives up where the disk is full
                    self._db.execute("ROLLBACK")
                raise
        if happened:
            self.events.announce()

    def exec(self, workspace_id: str, exec_id: str) -> ExecRecord | None:
        """One command, or None."""
        with translated():
            row = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? AND exec_id = ?", (workspace_id, exec_id)
            ).fetchone()
            return self._exec.decode(row[0]) if row else None

    def keyed_exec(self, workspace_id: str, idempotency_key: str) -> ExecRecord | None:
        """The command that was given this key, or None."""
        with translated():
            row = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? AND idempotency_key = ?",
                (workspace_id, idempotency_key),
            ).fetchone()
            return self._exec.decode(row[0]) if row else None

    def next_exec(self, workspace_id: str, sequence: int) -> ExecRecord | None:
        """The first command after this sequence number, or None."""
        with translated():
            row = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? AND sequence > ? ORDER BY sequence LIMIT 1",
                (workspace_id, sequence),
            ).fetchone()
            return self._exec.decode(row[0]) if row else None

    def newest_execs(self, workspace_id: str, limit: int) -> list[ExecRecord]:
        """The newest commands, oldest first."""
        with translated():
            rows = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? ORDER BY sequence DESC LIMIT ?", (workspace_id, limit)
            ).fetchall()
            return [self._exec.decode(blob) for (blob,) in reversed(rows)]

    def running_execs(self, workspace_id: str) -> list[ExecRecord]:
        """The commands whose end is not recorded, oldest first."""
        with translated():
            rows = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? AND NOT ended ORDER BY sequence", (workspace_id,)
            )
            return [self._exec.decode(blob) for (blob,) in rows]


def _decode_path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
