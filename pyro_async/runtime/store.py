"""What survives the runtime: workspaces and commands, in SQLite.

One transaction per transition. Write-ahead logging without a sync per commit: a commit survives the death of the
process at any moment, and after a power cut the VMs are gone anyway, so what matters then is only that the file is
consistent. Calls take some ten microseconds and are made from the event loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pyro_async.errors import HomeUnusable, HostDiskFull
from pyro_async.operations import Command
from pyro_async.runtime.lifecycle import Phase
from pyro_async.vmm.driver import MachineSpec
from pyro_async.vmm.process import ProcessIdentity
from pyro_async.wire.guest import ExecExit

__all__ = ["ExecRecord", "Store", "WorkspaceRecord"]

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
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
"""


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
    """One command as it is kept; ``exit`` is None while it runs, ``lost`` set when its end will never be known."""

    workspace_id: str
    exec_id: str
    sequence: int
    command: Command
    cwd: str
    started_at: float
    stdin: bool = False
    exit: ExecExit | None = None
    lost: bool = False

    @property
    def ended(self) -> bool:
        return self.exit is not None or self.lost


class Store:
    """All records of one home.

    Raises:
        HomeUnusable: the database cannot be opened, is of a newer version, or damaged; the last from every method.
        HostDiskFull: from every writing method.
    """

    def __init__(self, path: Path) -> None:
        self._encode = msgspec.msgpack.Encoder(enc_hook=str).encode
        self._workspace = msgspec.msgpack.Decoder(WorkspaceRecord, dec_hook=_decode_path)
        self._exec = msgspec.msgpack.Decoder(ExecRecord)
        with _translated(), ExitStack() as stack:
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
        if version < _SCHEMA_VERSION:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT")

    def close(self) -> None:
        """Closes the database; the store cannot be used afterwards."""
        self._db.close()

    def workspaces(self) -> list[WorkspaceRecord]:
        """All workspaces, oldest first."""
        with _translated():
            rows = self._db.execute("SELECT record FROM workspaces")
            return sorted((self._workspace.decode(blob) for (blob,) in rows), key=lambda record: record.created_at)

    def save_workspace(self, record: WorkspaceRecord) -> None:
        """Inserts or replaces a workspace."""
        with _translated():
            self._db.execute(
                "INSERT INTO workspaces VALUES (?, ?) ON CONFLICT DO UPDATE SET record = excluded.record",
                (record.workspace_id, self._encode(record)),
            )

    def delete_workspace(self, workspace_id: str) -> None:
        """Removes a workspace and its commands."""
        with _translated():
            self._db.execute("DELETE FROM workspaces WHERE workspace_id = ?", (workspace_id,))

    def save_exec(self, record: ExecRecord) -> None:
        """Inserts or replaces a command."""
        with _translated():
            self._db.execute(
                "INSERT INTO execs VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET record = excluded.record, ended = excluded.ended",
                (record.workspace_id, record.sequence, record.exec_id, record.ended, self._encode(record)),
            )

    def delete_exec(self, record: ExecRecord) -> None:
        """Removes a command that never came to run."""
        with _translated():
            self._db.execute(
                "DELETE FROM execs WHERE workspace_id = ? AND sequence = ?", (record.workspace_id, record.sequence)
            )

    def exec(self, workspace_id: str, exec_id: str) -> ExecRecord | None:
        """One command, or None."""
        with _translated():
            row = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? AND exec_id = ?", (workspace_id, exec_id)
            ).fetchone()
            return self._exec.decode(row[0]) if row else None

    def newest_execs(self, workspace_id: str, limit: int) -> list[ExecRecord]:
        """The newest commands, oldest first."""
        with _translated():
            rows = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? ORDER BY sequence DESC LIMIT ?", (workspace_id, limit)
            ).fetchall()
            return [self._exec.decode(blob) for (blob,) in reversed(rows)]

    def running_execs(self, workspace_id: str) -> list[ExecRecord]:
        """The commands whose end is not recorded, oldest first."""
        with _translated():
            rows = self._db.execute(
                "SELECT record FROM execs WHERE workspace_id = ? AND NOT ended ORDER BY sequence", (workspace_id,)
            )
            return [self._exec.decode(blob) for (blob,) in rows]


def _decode_path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
        if "disk is full" in str(error):
            raise HostDiskFull("no space left for pyro's records", hint="free space on the home's disk") from error
        raise HomeUnusable(
            f"pyro's records cannot be used: {error}", hint="move state.db out of the home to start afresh"
        ) from error
