"""A daemon dies at each of its fault points, and the next one leaves nothing lost, doubled, half done or behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import PyroError
from pyro_async.faults import POINTS
from pyro_async.operations import ExecStarted
from pyro_async.transport import stop_daemon
from tests.crash.conftest import Daemons, ended, kinds, until

pytestmark = pytest.mark.slow

LINES = "".join(f"line {number}\n" for number in range(200))
SCRIPT = "echo ran >>marks; i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done"
INPUT = "".join(f"{number:06d}\n" for number in range(140_000))
#: Processes of one guest: its namespace's parent, and the agent.
GUEST = 2


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- what the daemon was doing ----------------------------------------------------------------------------------------


async def create(client: AsyncPyro, daemons: Daemons) -> None:
    await client.create_workspace("debian:12", name="ws")


async def execute(client: AsyncPyro, daemons: Daemons) -> None:
    await create(client, daemons)
    await client.exec_workspace("ws", SCRIPT)


async def feed(client: AsyncPyro, daemons: Daemons) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(INPUT), 60_000):
            yield INPUT[start : start + 60_000].encode()

    await create(client, daemons)
    await client.exec_workspace("ws", "echo ran >>marks; cat", stdin=pieces())


async def refuse(client: AsyncPyro, daemons: Daemons) -> None:
    await create(client, daemons)
    await client.exec_workspace("ws", "true", cwd="/nowhere")


async def cancel(client: AsyncPyro, daemons: Daemons) -> None:
    await create(client, daemons)
    async with client.stream_exec("ws", "echo ran >>marks; sleep 1000") as events:
        started = await anext(events)
        assert isinstance(started, ExecStarted)
        await client.cancel_exec("ws", started.exec_id)


async def stop(client: AsyncPyro, daemons: Daemons) -> None:
    await execute(client, daemons)
    await client.stop_workspace("ws")


async def start(client: AsyncPyro, daemons: Daemons) -> None:
    await stop(client, daemons)
    await client.start_workspace("ws")


async def delete(client: AsyncPyro, daemons: Daemons) -> None:
    await execute(client, daemons)
    await client.delete_workspace("ws")


async def rename(client: AsyncPyro, daemons: Daemons) -> None:
    await execute(client, daemons)
    await client.update_workspace("ws", labels={"a": "b"})


async def fail(client: AsyncPyro, daemons: Daemons) -> None:
    await execute(client, daemons)
    os.kill(daemons.machine((await client.status_workspace("ws")).workspace_id), signal.SIGKILL)
    await anyio.sleep_forever()


async def sleep(client: AsyncPyro, daemons: Daemons) -> None:
    await execute(client, daemons)
    daemons.send(signal.SIGSTOP)
    await anyio.sleep(4)
    daemons.send(signal.SIGCONT)
    await anyio.sleep_forever()


# --- what must be true afterwards -------------------------------------------------------------------------------------


async def exists_or_not(client: AsyncPyro, daemons: Daemons) -> None:
    """A workspace is there and works, or is not, and its name is free."""
    if not (await client.list_workspaces()).workspaces:
        assert daemons.processes() == {}
        assert daemons.stray_files() == []
        await client.create_workspace("debian:12", name="ws")


async def ran_once(client: AsyncPyro, daemons: Daemons) -> None:
    result = await ended(client)
    assert (result.exit_code, result.stdout, marks(daemons)) == (0, LINES, "ran\n")


async def never_ran(client: AsyncPyro, daemons: Daemons) -> None:
    assert (await ended(client)).cause == "lost"
    assert marks(daemons) == ""


async def echoes_a_prefix(client: AsyncPyro, daemons: Daemons) -> None:
    """What the guest had of its input came back once; the rest went with the client."""
    (entry,) = (await client.logs_workspace("ws")).entries
    result = await client.cancel_exec("ws", entry.exec_id)
    assert result.cancelled
    assert INPUT.startswith(result.stdout)
    assert result.stdout
    assert marks(daemons) == "ran\n"


async def struck(client: AsyncPyro, daemons: Daemons) -> None:
    assert (await client.logs_workspace("ws")).entries == []


async def cancelled_or_running(client: AsyncPyro, daemons: Daemons) -> None:
    (entry,) = (await client.logs_workspace("ws")).entries
    assert (await client.cancel_exec("ws", entry.exec_id)).cancelled
    assert marks(daemons) in ("", "ran\n")
    workspace = (await client.status_workspace("ws")).workspace_id
    await until(lambda: daemons.processes() == {workspace: GUEST})


async def stopped(client: AsyncPyro, daemons: Daemons) -> None:
    workspace = await client.status_workspace("ws")
    assert workspace.state == "stopped"
    assert daemons.processes() == {}
    assert daemons.sockets(workspace.workspace_id) == []
    await ran_once(client, daemons)


async def failed(client: AsyncPyro, daemons: Daemons) -> None:
    assert (await client.status_workspace("ws")).state == "failed"
    await ran_once(client, daemons)


async def started_or_stopped(client: AsyncPyro, daemons: Daemons) -> None:
    assert (await client.status_workspace("ws")).state in ("started", "stopped")
    await ran_once(client, daemons)


async def gone(client: AsyncPyro, daemons: Daemons) -> None:
    assert (await client.list_workspaces()).workspaces == []
    await exists_or_not(client, daemons)


async def renamed(client: AsyncPyro, daemons: Daemons) -> None:
    assert (await client.status_workspace("ws")).labels == {"a": "b"}
    await ran_once(client, daemons)


Step = Callable[[AsyncPyro, Daemons], Awaitable[None]]


class Case(NamedTuple):
    """What the daemon does when it dies, what holds afterwards, and what the next one says that it did."""

    doing: Step
    then: Step
    says: frozenset[str] = frozenset()


UNDONE, FINISHED, ADOPTED = (frozenset({f"recovery.{word}"}) for word in ("undone", "finished", "adopted"))
REAPED = frozenset({"recovery.reaped"})

#: By fault point; the number is that of the visit.
CASES = {
    "environment.recorded": Case(create, exists_or_not),
    "create.recorded": Case(create, gone, UNDONE),
    "create.disk": Case(create, gone, UNDONE),
    "machine.spawned": Case(create, gone, UNDONE | REAPED),
    "machine.started": Case(create, gone, UNDONE | REAPED),
    "machine.recorded": Case(create, gone, UNDONE | REAPED),
    "machine.configured": Case(create, gone, UNDONE | REAPED),
    "machine.ready": Case(create, exists_or_not, ADOPTED),
    "exec.recorded": Case(execute, never_ran, ADOPTED),
    "exec.announced": Case(execute, ran_once, ADOPTED),
    "exec.received": Case(execute, ran_once, ADOPTED),
    "exec.kept": Case(execute, ran_once, ADOPTED),
    "exec.exited": Case(execute, ran_once, ADOPTED),
    "exec.finished": Case(execute, ran_once, ADOPTED),
    "exec.stdin:5": Case(feed, echoes_a_prefix, ADOPTED),
    "exec.refused": Case(refuse, struck, ADOPTED),
    "cancel.asked": Case(cancel, cancelled_or_running, ADOPTED),
    "cancel.confirmed": Case(cancel, cancelled_or_running, ADOPTED),
    "update.recorded": Case(rename, renamed, ADOPTED),
    "stop.recorded": Case(stop, stopped, FINISHED),
    "stop.ended": Case(stop, stopped, FINISHED),
    "stop.finished": Case(stop, stopped),
    "start.recorded": Case(start, stopped, UNDONE),
    "machine.spawned:2": Case(start, stopped, UNDONE | REAPED),
    "machine.recorded:2": Case(start, stopped, UNDONE | REAPED),
    "machine.ready:2": Case(start, started_or_stopped, ADOPTED),
    "delete.recorded": Case(delete, gone, FINISHED | REAPED),
    "delete.killed": Case(delete, gone, FINISHED),
    "delete.removed": Case(delete, gone, FINISHED),
    "delete.finished": Case(delete, gone),
    "failure.recorded": Case(fail, failed),
    "clock.recorded": Case(sleep, ran_once, ADOPTED),
}

#: Points that a daemon passes while it comes up after another was killed in the middle of a command.
AT_START = {
    "recover.begun": ran_once,
    "recover.greeted": ran_once,
    "recover.adopted": ran_once,
    "recover.finished": ran_once,
    "daemon.serving": ran_once,
}


def marks(daemons: Daemons) -> str:
    """What the commands wrote down when they ran."""
    return "".join(path.read_text() for path in Path(daemons.home / "workspaces").glob("*/upper/marks"))


async def works_and_leaves_nothing(client: AsyncPyro, daemons: Daemons) -> None:
    """The workspace runs commands; once it is deleted nothing of it is left."""
    await client.start_workspace("ws")
    assert (await client.exec_workspace("ws", "echo alive")).stdout == "alive\n"
    await client.delete_workspace("ws")
    await until(lambda: daemons.processes() == {})
    assert daemons.stray_files() == []


def test_every_fault_point_has_a_case() -> None:
    elsewhere = {"recover.reaped", "exec.lost", "daemon.released"}
    assert {name.partition(":")[0] for name in CASES} | AT_START.keys() | elsewhere == POINTS.keys()


@pytest.mark.parametrize("point", CASES)
async def test_after_a_death_at_any_moment_the_next_daemon_goes_on(point: str, daemons: Daemons) -> None:
    case = CASES[point]
    assert daemons.start(point)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt, case.doing, daemons)
            died = await anyio.to_thread.run_sync(daemons.died_at_its_fault)
            tasks.cancel_scope.cancel()
        assert died
        assert daemons.start()
        async with daemons.client() as client:
            assert case.says <= set(await kinds(client, "recovery."))
            await case.then(client, daemons)
            await works_and_leaves_nothing(client, daemons)


async def attempt(doing: Step, daemons: Daemons) -> None:
    with suppress(PyroError):  # the daemon dies on the way
        async with daemons.client() as client:
            await doing(client, daemons)


async def killed_in_a_command(daemons: Daemons) -> None:
    """Leaves a workspace with a command that is under way, and no daemon."""
    assert daemons.start("exec.kept")
    await attempt(execute, daemons)
    assert daemons.died_at_its_fault()


@pytest.mark.parametrize("point", AT_START)
async def test_a_death_during_recovery_is_recovered_from(point: str, daemons: Daemons) -> None:
    with anyio.fail_after(60):
        await killed_in_a_command(daemons)
        daemons.start(point)
        assert daemons.died_at_its_fault()
        assert daemons.start()
        async with daemons.client() as client:
            await AT_START[point](client, daemons)
            await works_and_leaves_nothing(client, daemons)


@pytest.mark.parametrize("point", ["recover.reaped", "exec.lost", "failure.recorded"])
async def test_a_death_while_a_lost_machine_is_given_up(point: str, daemons: Daemons) -> None:
    with anyio.fail_after(60):
        await killed_in_a_command(daemons)
        (workspace,) = daemons.processes()
        os.kill(daemons.machine(workspace), signal.SIGKILL)
        await until(lambda: daemons.processes() == {})
        daemons.start(point)
        assert daemons.died_at_its_fault()
        assert daemons.start()
        async with daemons.client() as client:
            assert (await client.status_workspace("ws")).state == "failed"
            result = await ended(client)
            assert (result.cause, marks(daemons)) == ("lost", "ran\n")
            assert LINES.startswith(result.stdout)
            await works_and_leaves_nothing(client, daemons)


async def test_a_death_while_a_daemon_lets_go(daemons: Daemons) -> None:
    with anyio.fail_after(60):
        assert daemons.start("daemon.released")
        async with daemons.client() as client:
            await execute(client, daemons)
        assert await stop_daemon(daemons.home)
        assert daemons.died_at_its_fault()
        assert daemons.start()
        async with daemons.client() as client:
            assert "recovery.adopted" in await kinds(client)
            await ran_once(client, daemons)
            await works_and_leaves_nothing(client, daemons)
