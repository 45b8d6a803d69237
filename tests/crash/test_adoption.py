"""Daemons come and go around commands that run on."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import LinkLost, PyroError
from pyro_async.operations import Event, ExecOutput
from pyro_async.runtime.output import OutputStore
from pyro_async.transport import stop_daemon
from pyro_async.wire.guest import STDOUT
from tests.crash.conftest import Daemons, ended, kinds

TICKER = "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.005; done"
TICKS = "".join(f"{number}\n" for number in range(400))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Caller:
    """Runs a command in a task until the daemon is gone."""

    def __init__(self) -> None:
        self.under_way = anyio.Event()
        self.error: PyroError | None = None

    async def run(self, client: AsyncPyro, command: str, stdin: AsyncIterator[bytes] | None = None) -> None:
        try:
            await client.exec_workspace("ws", command, stdin=stdin, on_event=self._note)
        except PyroError as error:
            self.error = error

    def _note(self, event: object) -> None:
        if isinstance(event, ExecOutput):
            self.under_way.set()


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_command_runs_on_without_a_daemon(daemons: Daemons, how: str) -> None:
    with anyio.fail_after(60):
        assert daemons.start()
        caller = Caller()
        async with daemons.client() as client:
            await client.create_workspace("debian:12", name="ws")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caller.run, client, TICKER)
                await caller.under_way.wait()
                if how == "stop":
                    assert await stop_daemon(daemons.home)
                else:
                    daemons.kill()
        assert isinstance(caller.error, LinkLost)
        assert len(daemons.processes()) == 1
        assert daemons.start()
        async with daemons.client() as client:
            assert (await ended(client)).stdout == TICKS
            assert await kinds(client, "recovery.") == ["recovery.adopted"]


async def test_a_daemon_that_stops_with_all_leaves_nothing(daemons: Daemons) -> None:
    with anyio.fail_after(60):
        assert daemons.start()
        async with daemons.client() as client:
            await client.create_workspace("debian:12", name="ws")
        assert await stop_daemon(daemons.home, all=True)
        assert daemons.processes() == {}
        assert daemons.start()
        async with daemons.client() as client:
            assert (await client.status_workspace("ws")).state == "stopped"


async def test_killed_in_the_middle_of_64_mib_the_output_is_whole(daemons: Daemons) -> None:
    """Killed once on the way and once more by the next daemon's own fault, so that both ends were in mid frame."""
    command = ["seq", "-w", "1", str(64 * 1024 * 1024 // 9)]
    expected = hashlib.sha256(subprocess.run(command, capture_output=True, check=True).stdout).hexdigest()
    with anyio.fail_after(120):
        assert daemons.start("exec.kept:100")
        async with daemons.client() as client:
            await client.create_workspace("debian:12", name="ws")
            with pytest.raises(LinkLost):
                await client.exec_workspace("ws", command)
        assert daemons.died_at_its_fault()
        daemons.start("exec.received:100")
        assert daemons.died_at_its_fault()
        assert daemons.start()
        async with daemons.client() as client:
            result = await ended(client)
            assert result.exit_code == 0
    (directory,) = (daemons.home / "workspaces").glob("*/output")
    digest = hashlib.sha256()
    for record in OutputStore(directory).journal(result.exec_id).records():
        assert record.channel == STDOUT
        digest.update(record.data)
    assert digest.hexdigest() == expected


async def test_one_command_outlives_ten_daemons(daemons: Daemons) -> None:
    with anyio.fail_after(120):
        assert daemons.start()
        caller = Caller()
        async with daemons.client() as client:
            await client.create_workspace("debian:12", name="ws")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caller.run, client, TICKER)
                await caller.under_way.wait()
                daemons.kill()
        for _ in range(9):
            assert daemons.start()
            daemons.kill()
        assert daemons.start()
        async with daemons.client() as client:
            assert (await ended(client)).stdout == TICKS


async def test_a_machine_whose_process_nobody_recorded_is_ended(daemons: Daemons, tmp_path: Path) -> None:
    """A VMM of a workspace that the records do not know: they were lost, or moved away."""
    with anyio.fail_after(60):
        assert daemons.start()
        async with daemons.client() as client:
            await client.create_workspace("debian:12", name="ws")
        daemons.kill()
        assert len(daemons.processes()) == 1
        for path in daemons.home.glob("state.db*"):
            path.unlink()
        assert daemons.start()
        assert daemons.processes() == {}
        assert daemons.stray_files() == []
        async with daemons.client() as client:
            (event,) = (await client.list_events()).events
            assert (event.kind, event.detail["recorded"]) == ("recovery.reaped", False)


async def test_a_follower_goes_on_where_it_was_over_a_daemons_death(daemons: Daemons) -> None:
    seen: list[Event] = []

    async def follow(client: AsyncPyro) -> None:
        async with client.follow_events(after=seen[-1].event_id if seen else 0) as events:
            async for event in events:
                seen.append(event)
                if event.kind in ("workspace.started", "workspace.deleted"):
                    return

    with anyio.fail_after(60):
        assert daemons.start()
        async with daemons.client() as client:
            await client.create_workspace("debian:12", name="ws")
            await follow(client)
        daemons.kill()
        assert daemons.start()
        async with daemons.client() as client, anyio.create_task_group() as tasks:
            tasks.start_soon(follow, client)
            await client.exec_workspace("ws", "true")
            await client.delete_workspace("ws")
    assert [event.kind for event in seen] == [
        "environment.built",
        "workspace.created",
        "workspace.started",
        "recovery.adopted",
        "exec.started",
        "exec.ended",
        "workspace.deleted",
    ]
    assert [event.event_id for event in seen] == list(range(1, 8))


async def test_a_daemon_and_its_machine_that_stood_still_go_on(daemons: Daemons) -> None:
    with anyio.fail_after(60):
        assert daemons.start()
        async with daemons.client() as client:
            await client.create_workspace("debian:12", name="ws")
            async with anyio.create_task_group() as tasks:
                caller = Caller()
                tasks.start_soon(caller.run, client, TICKER)
                await caller.under_way.wait()
                daemons.send_all(signal.SIGSTOP)
                await anyio.sleep(4)
                daemons.send_all(signal.SIGCONT)
            assert caller.error is None
            assert (await ended(client)).stdout == TICKS
            await until_kind(client, "host.clock_jumped")


async def until_kind(client: AsyncPyro, kind: str) -> None:
    async with client.follow_events() as events:
        async for event in events:
            if event.kind == kind:
                return
