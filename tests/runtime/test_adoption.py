"""One runtime goes, in whatever way, and the next takes over what it left."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import LinkLost, WorkspaceFailed
from pyro_async.operations import ExecOutput, ExecResult, ExecStarted
from pyro_async.runtime.lifecycle import Phase
from pyro_async.runtime.store import Store
from tests.runtime.conftest import Open
from tests.support.memory_guest import MemoryDriver

pytestmark = pytest.mark.usefixtures("no_task_left")

COUNT = 2000
TICKER = f"i=0; while [ $i -lt {COUNT} ]; do echo $i; i=$((i+1)); [ -e fast ] || sleep 0.002; done"
TICKS = "".join(f"{number}\n" for number in range(COUNT))


class Follower:
    """Runs a command and notes what it hears of it; its client goes away with the first runtime."""

    def __init__(self) -> None:
        self.exec_id = ""
        self.heard = b""
        self.under_way = anyio.Event()

    async def run(self, client: AsyncPyro, command: str) -> None:
        with pytest.raises(LinkLost, match="the runtime is stopping"):
            await client.exec_workspace("ws", command, on_event=self._note)

    def _note(self, event: object) -> None:
        if isinstance(event, ExecStarted):
            self.exec_id = event.exec_id
        elif isinstance(event, ExecOutput):
            self.heard += event.data
            if len(self.heard) > 200:
                self.under_way.set()


async def ended(client: AsyncPyro, exec_id: str) -> ExecResult:
    """Waits for a command that has no client any more."""
    with anyio.fail_after(20):
        while True:
            entries = (await client.logs_workspace("ws", limit=1000)).entries
            entry = next(entry for entry in entries if entry.exec_id == exec_id)
            if entry.exit_code is not None or entry.cause is not None:
                return entry
            await anyio.sleep(0.01)


@pytest.fixture
async def left_behind(open_runtime: Open, guests: MemoryDriver) -> Follower:
    """A workspace whose runtime went, and left it running with a command in it."""
    follower = Follower()
    async with anyio.create_task_group() as tasks, open_runtime(leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws", labels={"a": "b"})
        tasks.start_soon(follower.run, client, TICKER)
        await follower.under_way.wait()
    assert guests.newest.alive
    return follower


async def test_a_running_command_goes_on_and_its_output_is_whole(
    left_behind: Follower, open_runtime: Open, guests: MemoryDriver
) -> None:
    machine = guests.newest
    async with open_runtime() as client:
        assert guests.newest is machine
        status = await client.status_workspace("ws")
        assert (status.state, status.labels, status.command_count) == ("started", {"a": "b"}, 1)
        await client.exec_workspace("ws", "touch fast")
        result = await ended(client, left_behind.exec_id)
        assert (result.exit_code, result.stdout) == (0, TICKS)


async def test_an_adopted_command_can_be_cancelled(
    left_behind: Follower, open_runtime: Open, guests: MemoryDriver
) -> None:
    async with open_runtime() as client:
        result = await client.cancel_exec("ws", left_behind.exec_id)
        assert (result.cancelled, result.exit_code) == (True, 137)
        assert TICKS.startswith(result.stdout)
        assert guests.newest.system.leftovers() == []


async def test_numbering_goes_on(left_behind: Follower, open_runtime: Open) -> None:
    async with open_runtime() as client:
        assert (await client.exec_workspace("ws", "true")).sequence == 2


async def test_a_machine_that_died_meanwhile_is_failed_and_its_commands_are_lost(
    left_behind: Follower, open_runtime: Open, guests: MemoryDriver
) -> None:
    await guests.newest.die()
    async with open_runtime() as client:
        status = await client.status_workspace("ws")
        assert status.state == "failed"
        assert "the VM is gone" in (status.failure or "")
        result = await ended(client, left_behind.exec_id)
        assert (result.cause, result.exit_code) == ("lost", None)
        assert TICKS.startswith(result.stdout)
        with pytest.raises(WorkspaceFailed, match="the VM is gone"):
            await client.exec_workspace("ws", "true")
        assert (await client.start_workspace("ws")).state == "started"
        assert (await client.exec_workspace("ws", "echo back")).stdout == "back\n"


async def test_a_guest_that_was_replaced_is_not_taken_for_the_old_one(
    left_behind: Follower, open_runtime: Open, guests: MemoryDriver
) -> None:
    guests.newest.agent._nonce = b"somebody else"
    async with open_runtime() as client:
        status = await client.status_workspace("ws")
        assert status.state == "failed"
        assert "replaced or restarted" in (status.failure or "")
    assert not guests.newest.alive


async def test_a_guest_that_no_longer_answers_fails_only_its_workspace(
    left_behind: Follower, open_runtime: Open, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_async.runtime.workspace.ADOPT_SECONDS", 0.3)
    mute = guests.newest
    mute.serve = None
    async with open_runtime() as client:
        status = await client.status_workspace("ws")
        assert status.state == "failed"
        assert "did not answer" in (status.failure or "")
        assert mute.console.strip() in (status.failure or "")
        assert (await client.create_workspace("debian:12", name="other")).state == "started"


@pytest.mark.parametrize("moment", range(4))
async def test_after_a_crash_nothing_is_lost_or_doubled(
    open_runtime: Open, guests: MemoryDriver, home: Path, tmp_path: Path, moment: int
) -> None:
    """The second runtime starts from the disk as it was at one moment while the first was at work."""
    crashed = tmp_path / "crashed"
    follower = Follower()
    async with anyio.create_task_group() as tasks, open_runtime(leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws")
        tasks.start_soon(follower.run, client, TICKER)
        await follower.under_way.wait()
        await anyio.sleep(0.02 * moment)
        shutil.copytree(home, crashed)
        async with open_runtime(crashed, leave_running=True) as survivor:
            await survivor.exec_workspace("ws", "touch fast")
            assert (await ended(survivor, follower.exec_id)).stdout == TICKS


async def test_cancelling_everything_around_a_runtime_still_leaves_the_machines(
    open_runtime: Open, guests: MemoryDriver
) -> None:
    with anyio.CancelScope() as scope:
        async with open_runtime(leave_running=True) as client:
            await client.create_workspace("debian:12", name="ws")
            await client.exec_workspace("ws", "echo kept >file")
            scope.cancel()
            await anyio.sleep_forever()
    assert guests.newest.alive
    async with open_runtime() as client:
        assert (await client.exec_workspace("ws", "cat file")).stdout == "kept\n"


async def test_cancelling_everything_around_an_embedded_runtime_stops_the_machines_cleanly(
    open_runtime: Open, guests: MemoryDriver
) -> None:
    with anyio.CancelScope() as scope:
        async with open_runtime() as client:
            await client.create_workspace("debian:12", name="ws")
            scope.cancel()
            await anyio.sleep_forever()
    assert guests.newest.system.sealed
    async with open_runtime() as client:
        assert (await client.status_workspace("ws")).state == "stopped"


async def test_an_error_in_the_callers_block_comes_out_as_itself(open_runtime: Open, guests: MemoryDriver) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_runtime() as client:
            await client.create_workspace("debian:12")
            raise ZeroDivisionError
    assert guests.newest.system.sealed


@pytest.fixture
async def recorded(open_runtime: Open, home: Path) -> AsyncIterator[Store]:
    """The records of a home with one workspace that was left running."""
    async with open_runtime(leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws")
    store = Store(home / "state.db")
    yield store
    store.close()


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (Phase.CREATING, None),
        (Phase.DELETING, None),
        (Phase.STARTING, "stopped"),
        (Phase.STOPPING, "stopped"),
        (Phase.STARTED, "started"),
        (Phase.STOPPED, "stopped"),
        (Phase.FAILED, "failed"),
    ],
)
async def test_a_crash_in_any_phase_leads_to_a_state_one_can_go_on_from(
    recorded: Store, open_runtime: Open, guests: MemoryDriver, home: Path, phase: Phase, state: str | None
) -> None:
    (record,) = recorded.workspaces()
    record.phase = phase
    if phase in (Phase.STOPPED, Phase.FAILED):
        await guests.newest.die()
    recorded.save_workspace(record)
    async with open_runtime() as client:
        workspaces = (await client.list_workspaces()).workspaces
        assert [workspace.state for workspace in workspaces] == ([state] if state else [])
        assert guests.newest.alive == (state == "started")
        if state is None:
            assert list((home / "workspaces").iterdir()) == []
        else:
            await client.start_workspace("ws")
            await client.exec_workspace("ws", "true")
            await client.delete_workspace("ws")
    assert list((home / "workspaces").iterdir()) == []


async def test_files_of_workspaces_nobody_knows_are_removed(open_runtime: Open, home: Path) -> None:
    stray = home / "workspaces" / "0123456789ab"
    stray.mkdir(parents=True)
    (stray / "upper.ext4").touch()
    async with open_runtime():
        assert not stray.exists()


async def test_a_one_shot_workspace_does_not_outlive_its_runtime(
    recorded: Store, open_runtime: Open, guests: MemoryDriver
) -> None:
    (record,) = recorded.workspaces()
    record.ephemeral = True
    recorded.save_workspace(record)
    async with open_runtime() as client:
        assert (await client.list_workspaces()).workspaces == []
    assert not guests.newest.alive
