from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyro_async.errors import HomeUnusable, HostDiskFull
from pyro_async.runtime.lifecycle import Phase
from pyro_async.runtime.store import ExecRecord, Store, WorkspaceRecord
from pyro_async.vmm.driver import MachineSpec
from pyro_async.vmm.process import ProcessIdentity
from pyro_async.wire.guest import ExecExit


def workspace(number: int = 1, **changes: object) -> WorkspaceRecord:
    path = Path("/nowhere")
    fields: dict[str, object] = {
        "workspace_id": f"{number:012x}",
        "name": f"name-{number}",
        "labels": {"key": "välue"},
        "environment": "debian:12",
        "digest": "d" * 64,
        "phase": Phase.STARTED,
        "vcpu_count": 1,
        "mem_mib": 512,
        "created_at": 1000.0 - number,
        "last_activity_at": 1000.0,
        "machine": ProcessIdentity(pid=1, start_ticks=2, boot_id="boot"),
        "spec": MachineSpec(directory=path, kernel=path, initramfs=path, tools=path, base=path, upper=path),
        "nonce": b"\x00\xff",
    }
    return WorkspaceRecord(**(fields | changes))  # type: ignore[arg-type]


def command(sequence: int, *, ended: bool = False, owner: WorkspaceRecord | None = None) -> ExecRecord:
    return ExecRecord(
        workspace_id=(owner or workspace()).workspace_id,
        exec_id=f"exec-{sequence}",
        sequence=sequence,
        command=["true", str(sequence)],
        cwd="/",
        started_at=1.0,
        exit=ExecExit(exit_code=7) if ended else None,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def test_everything_is_there_again_after_reopening(store: Store, path: Path) -> None:
    store.save_workspace(workspace())
    store.save_exec(command(1, ended=True))
    store.close()
    again = Store(path)
    assert again.workspaces() == [workspace()]
    assert again.exec(workspace().workspace_id, "exec-1") == command(1, ended=True)
    again.close()


def test_what_another_process_committed_and_never_closed_is_there(store: Store, path: Path) -> None:
    store.save_workspace(workspace())
    again = Store(path)
    assert again.workspaces() == [workspace()]
    again.close()


def test_saving_again_replaces(store: Store) -> None:
    store.save_workspace(workspace())
    store.save_workspace(workspace(phase=Phase.FAILED, failure="why"))
    assert [record.failure for record in store.workspaces()] == ["why"]


def test_workspaces_come_oldest_first(store: Store) -> None:
    for number in (3, 1, 2):
        store.save_workspace(workspace(number))
    assert [record.name for record in store.workspaces()] == ["name-3", "name-2", "name-1"]


def test_the_newest_commands_come_in_order(store: Store) -> None:
    store.save_workspace(workspace())
    for sequence in (2, 1, 4, 3):
        store.save_exec(command(sequence))
    assert [record.sequence for record in store.newest_execs(workspace().workspace_id, 2)] == [3, 4]


def test_running_commands_are_those_without_an_end(store: Store) -> None:
    store.save_workspace(workspace())
    lost = command(3)
    lost.lost = True
    for record in (command(1), command(2, ended=True), lost):
        store.save_exec(record)
    assert [record.sequence for record in store.running_execs(workspace().workspace_id)] == [1]
    store.save_exec(command(1, ended=True))
    assert store.running_execs(workspace().workspace_id) == []


def test_deleting_a_workspace_takes_its_commands_along(store: Store) -> None:
    store.save_workspace(workspace())
    store.save_exec(command(1))
    store.delete_workspace(workspace().workspace_id)
    assert store.workspaces() == []
    assert store.exec(workspace().workspace_id, "exec-1") is None


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    before = path.read_bytes()
    with pytest.raises(HomeUnusable, match="newer pyro"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\x00" + bytes(4096)])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(HomeUnusable, match="records cannot be used"):
        Store(path)


def test_a_database_that_cannot_be_opened_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(HomeUnusable):
        Store(path)


def test_a_damaged_record_is_refused(store: Store, path: Path) -> None:
    store.save_workspace(workspace())
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("UPDATE workspaces SET record = x'c1'")
    database.close()
    with pytest.raises(HomeUnusable):
        store.workspaces()


def test_a_full_disk_is_told_as_such_and_nothing_is_lost(store: Store) -> None:
    store.save_workspace(workspace())
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(HostDiskFull):
        store.save_workspace(workspace(2, failure="x" * 100_000))
    assert store.workspaces() == [workspace()]


def test_a_crash_while_the_schema_is_made_leaves_a_usable_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_async.runtime.store._MIGRATIONS", ("CREATE TABLE workspaces (x); CREATE NONSENSE;",))
    with pytest.raises(HomeUnusable):
        Store(path)
    monkeypatch.undo()
    store = Store(path)
    store.save_workspace(workspace())
    store.close()
