"""A client over the socket whose daemon is lost, and replaced by another, while it waits."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus

from pyro_async import AsyncPyro, transport
from pyro_async.errors import HomeBusy, LinkLost, PyroError
from pyro_async.home import Home
from pyro_async.operations import ExecOutput, ExecResult, ExecStarted, LogEnded, LogEvent, LogOutput
from pyro_async.runtime.daemon import Daemon
from pyro_async.runtime.runtime import Runtime
from tests.support.memory_guest import MemoryDriver, MemoryImages

pytestmark = pytest.mark.usefixtures("no_task_left")

LINES = 4000
PRINTING = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); [ -e fast ] || sleep 0.002; done"
PRINTED = "".join(f"line {number}\n" for number in range(LINES)).encode()


class Daemons:
    """The daemons of one home, in this process; a client starts the next one when it needs it."""

    def __init__(self, home: Path, guests: MemoryDriver, tasks: TaskGroup) -> None:
        self.started = 0
        self._home = home
        self._guests = guests
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()
        self._daemon: Daemon | None = None

    async def start(self, home: Home) -> PyroError | None:
        """Stands for :func:`pyro_async.transport._start`."""
        try:
            await self._tasks.start(self._run)
        except HomeBusy as error:  # the one before is still ending
            return error
        self.started += 1
        return None

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        images, over = MemoryImages(self._home), anyio.Event()
        with anyio.CancelScope() as scope:
            async with Runtime(self._home, driver=self._guests, images=images, leave_running=True) as runtime:
                self._daemon, self._scope, self._over = Daemon(runtime), scope, over
                await self._daemon.serve(task_status=task_status)
        over.set()

    async def kill(self) -> None:
        """Ends the daemon and leaves its socket behind, as kill -9 does."""
        self._scope.cancel()
        await self._over.wait()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(self._home / "daemon.sock"))

    async def stop(self) -> None:
        """Ends the daemon in good order."""
        assert self._daemon is not None
        self._daemon.stop()
        await self._over.wait()


@pytest.fixture
async def daemons(tmp_path: Path, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemons]:
    home = tmp_path / "home"
    home.mkdir()
    async with anyio.create_task_group() as tasks:
        found = Daemons(home, guests, tasks)
        monkeypatch.setattr(transport, "_start", found.start)
        monkeypatch.setattr(transport, "RESTART_SECONDS", 0.2)
        yield found
        tasks.cancel_scope.cancel()


@pytest.fixture
async def remote(daemons: Daemons, tmp_path: Path) -> AsyncIterator[AsyncPyro]:
    async with AsyncPyro(tmp_path / "home") as client:
        await client.create_workspace("debian:12", name="ws")
        yield client


Listen = Callable[[AsyncPyro, list[object]], Coroutine[Any, Any, ExecResult]]


async def attached(client: AsyncPyro, heard: list[object]) -> ExecResult:
    begun = await client.exec_workspace("ws", PRINTING, detach=True)
    async with client.attach_exec("ws", begun.exec_id) as events:
        async for event in events:
            heard.append(event)
    assert isinstance(event, ExecResult)
    return event


async def keyed(client: AsyncPyro, heard: list[object]) -> ExecResult:
    return await client.exec_workspace("ws", PRINTING, idempotency_key="k", on_event=heard.append)


@pytest.mark.parametrize("listen", [attached, keyed])
async def test_output_goes_on_at_its_byte_over_killed_daemons(
    remote: AsyncPyro, daemons: Daemons, listen: Listen
) -> None:
    heard: list[object] = []
    results: list[ExecResult] = []

    async def run() -> None:
        results.append(await listen(remote, heard))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            for _ in range(3):
                await anyio.sleep(0.1)  # any moment will do
                await daemons.kill()
                await remote.list_workspaces()
            await remote.exec_workspace("ws", "touch fast")
    assert daemons.started == 4
    assert [type(event) for event in heard].count(ExecStarted) == 1
    pieces = [event for event in heard if isinstance(event, ExecOutput)]
    assert b"".join(piece.data for piece in pieces) == PRINTED
    assert pieces[-1].cursor == len(PRINTED)
    assert results[0].exit_code == 0
    assert (await remote.status_workspace("ws")).command_count == 2


async def test_waiting_goes_on_with_the_next_daemon(remote: AsyncPyro, daemons: Daemons) -> None:
    begun = await remote.exec_workspace("ws", "until [ -e done ]; do sleep 0.01; done; exit 7", detach=True)
    codes: list[int | None] = []

    async def wait() -> None:
        codes.append((await remote.wait_exec("ws", begun.exec_id, wait_seconds=20)).exit_code)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await daemons.kill()
            await remote.exec_workspace("ws", "touch done")
    assert codes == [7]


async def test_a_log_goes_on_with_the_next_daemon(remote: AsyncPyro, daemons: Daemons) -> None:
    heard: list[LogEvent] = []

    async def follow() -> None:
        async with remote.follow_logs("ws") as events:
            while sum(isinstance(event, LogEnded) for event in heard) < 3:
                heard.append(await anext(events))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            for number in range(3):
                await remote.exec_workspace("ws", f"echo {number}")
                await daemons.kill()
    assert b"".join(event.data for event in heard if isinstance(event, LogOutput)) == b"0\n1\n2\n"


async def test_a_plain_command_is_not_asked_for_again_but_can_be_found(remote: AsyncPyro, daemons: Daemons) -> None:
    begun = anyio.Event()
    heard: list[object] = []

    def note(event: object) -> None:
        heard.append(event)
        if isinstance(event, ExecOutput):
            begun.set()

    async def run() -> None:
        with pytest.raises(LinkLost, match="the daemon was lost during exec_workspace") as caught:
            await remote.exec_workspace("ws", "echo begun; sleep 1000", on_event=note)
        started = heard[0]
        assert isinstance(started, ExecStarted)
        assert f"attach {started.workspace_id} {started.exec_id} --cursor 6" in caught.value.hint

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await begun.wait()
            await daemons.kill()
    assert (await remote.status_workspace("ws")).command_count == 1


async def test_nobody_starts_a_daemon_again_that_was_stopped(remote: AsyncPyro, daemons: Daemons) -> None:
    begun = await remote.exec_workspace("ws", "sleep 1000", detach=True)

    async def wait() -> None:
        with pytest.raises(LinkLost):
            await remote.wait_exec("ws", begun.exec_id)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await daemons.stop()
    assert daemons.started == 1
    assert (await remote.wait_exec("ws", begun.exec_id, wait_seconds=0)).exit_code is None
    assert daemons.started == 2
    assert (await remote.cancel_exec("ws", begun.exec_id)).cancelled
