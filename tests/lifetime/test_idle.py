"""A workspace that nobody uses is stopped, and only such a one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import WrongState
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from tests.lifetime.conftest import Open
from tests.support.manual_clock import ManualClock
from tests.support.memory_guest import MemoryDriver, MemoryImages

#: The clock's task and the workspace's watch.
SLEEPERS = 2


@pytest.fixture
async def workspace(client: AsyncPyro, clock: ManualClock) -> str:
    """A workspace that is to be stopped after a minute without activity."""
    made = await client.create_workspace("debian:12", name="ws", idle_stop_seconds=60)
    assert made.idle_stop_seconds == 60
    await clock.until_asleep(SLEEPERS)
    return made.workspace_id


async def state(client: AsyncPyro) -> str:
    (found,) = (await client.list_workspaces()).workspaces
    return found.state


async def stopped(client: AsyncPyro) -> None:
    with anyio.fail_after(5):
        while await state(client) != "stopped":  # noqa: ASYNC110 - the guest ends its processes
            await anyio.sleep(0.001)


@asynccontextmanager
async def a_command_runs(client: AsyncPyro) -> AsyncIterator[None]:
    async with client.stream_exec("ws", ["sleep", "1000"]) as events:
        await anext(aiter(events))
        yield


async def test_it_is_stopped_after_its_idle_time_and_keeps_its_disk(
    client: AsyncPyro, workspace: str, clock: ManualClock, guests: MemoryDriver
) -> None:
    await client.exec_workspace("ws", "echo kept > file")
    await clock.advance(55)
    assert await state(client) == "started"
    await clock.advance(30)
    await stopped(client)
    assert guests.newest.system.sealed
    with pytest.raises(WrongState, match="start it first"):
        await client.exec_workspace("ws", ["true"])
    await client.start_workspace("ws")
    assert (await client.exec_workspace("ws", ["cat", "file"])).stdout == "kept\n"


async def test_a_workspace_without_an_idle_time_is_left_alone(client: AsyncPyro, clock: ManualClock) -> None:
    await client.create_workspace("debian:12")
    await clock.until_asleep(1)
    await clock.advance(86400)
    assert await state(client) == "started"


async def test_a_running_command_keeps_it_up_and_its_end_begins_the_idle_time(
    client: AsyncPyro, workspace: str, clock: ManualClock
) -> None:
    async with a_command_runs(client):
        await clock.advance(300)
        assert await state(client) == "started"
    await clock.advance(55)
    assert await state(client) == "started"
    await clock.advance(30)
    await stopped(client)


async def test_a_guest_that_works_keeps_it_up(
    client: AsyncPyro, workspace: str, clock: ManualClock, guests: MemoryDriver
) -> None:
    for _ in range(20):
        guests.newest.system.cpu_seconds += 1.5  # a tenth of one CPU
        await clock.advance(15)
    assert await state(client) == "started"
    await clock.advance(100)
    await stopped(client)


async def test_a_guest_whose_cpu_hardly_moves_is_idle(
    client: AsyncPyro, workspace: str, clock: ManualClock, guests: MemoryDriver
) -> None:
    for _ in range(6):
        guests.newest.system.cpu_seconds += 0.15  # a hundredth of one CPU
        await clock.advance(15)
    await stopped(client)


async def test_setting_the_hosts_clock_stops_nothing(client: AsyncPyro, workspace: str, clock: ManualClock) -> None:
    clock.set_time(+3600)
    await clock.advance(50)
    assert await state(client) == "started"


async def test_a_workspace_that_is_started_again_is_watched_again(
    client: AsyncPyro, workspace: str, clock: ManualClock
) -> None:
    for _ in range(2):
        await clock.advance(90)
        await stopped(client)
        await client.start_workspace("ws")
        await clock.until_asleep(SLEEPERS)
        assert await state(client) == "started"


async def test_an_adopted_workspace_is_watched_and_gets_its_full_idle_time(
    open_runtime: Open, clock: ManualClock
) -> None:
    async with open_runtime(leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws", idle_stop_seconds=60)
        await clock.until_asleep(SLEEPERS)
        await clock.advance(50)
    async with open_runtime() as client:
        await clock.until_asleep(SLEEPERS)
        await clock.advance(50)
        assert await state(client) == "started"
        await clock.advance(40)
        await stopped(client)


async def test_a_command_that_comes_while_the_stop_waits_for_its_turn_prevents_it(
    tmp_path: Path, guests: MemoryDriver, clock: ManualClock
) -> None:
    images: Any = MemoryImages(tmp_path)
    async with (
        Runtime(tmp_path, driver=guests, images=images, clock=clock) as runtime,
        AsyncPyro(transport=DirectTransport(runtime)) as client,
    ):
        await client.create_workspace("debian:12", name="ws", idle_stop_seconds=60)
        await clock.until_asleep(SLEEPERS)
        async with runtime._supervisor.find("ws").transition:
            await clock.advance(90)
            await client.exec_workspace("ws", ["true"])
        await anyio.wait_all_tasks_blocked()
        assert await state(client) == "started"
