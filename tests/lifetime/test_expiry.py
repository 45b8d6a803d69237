"""Workspaces are deleted when their time is up, whatever happened to the clock and the daemon meanwhile."""

from __future__ import annotations

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import InvalidArgument, WorkspaceNotFound
from tests.lifetime.conftest import Open
from tests.support.manual_clock import ManualClock
from tests.support.memory_guest import MemoryDriver


async def ids(client: AsyncPyro) -> set[str]:
    return {workspace.workspace_id for workspace in (await client.list_workspaces()).workspaces}


async def gone(client: AsyncPyro, workspace_id: str) -> None:
    """Waits until a workspace that is being deleted is."""
    with anyio.fail_after(5):
        while workspace_id in await ids(client):  # noqa: ASYNC110 - removing files happens in a thread
            await anyio.sleep(0.001)


async def test_a_workspace_says_when_it_expires(client: AsyncPyro, clock: ManualClock) -> None:
    made = await client.create_workspace("debian:12", ttl_seconds=60)
    assert made.expires_at == clock.time() + 60
    assert (await client.create_workspace("debian:12")).expires_at is None


@pytest.mark.parametrize("seconds", [59, 0, -1, 10**12])
async def test_a_lifetime_out_of_range_is_refused(client: AsyncPyro, seconds: int) -> None:
    with pytest.raises(InvalidArgument, match="ttl_seconds"):
        await client.create_workspace("debian:12", ttl_seconds=seconds)
    with pytest.raises(InvalidArgument, match="idle_stop_seconds"):
        await client.create_workspace("debian:12", idle_stop_seconds=seconds)


async def test_it_is_deleted_when_its_time_is_up_and_not_before(
    client: AsyncPyro, clock: ManualClock, guests: MemoryDriver
) -> None:
    kept = await client.create_workspace("debian:12")
    made = await client.create_workspace("debian:12", ttl_seconds=100)
    await clock.until_asleep(1)
    await clock.advance(99.9)
    assert made.workspace_id in await ids(client)
    await clock.advance(0.2)
    await gone(client, made.workspace_id)
    assert await ids(client) == {kept.workspace_id}
    assert not guests.newest.alive


async def test_a_running_command_does_not_keep_it(client: AsyncPyro, clock: ManualClock) -> None:
    made = await client.create_workspace("debian:12", ttl_seconds=60)
    raised: list[str] = []

    async def run() -> None:
        try:
            await client.exec_workspace(made.workspace_id, ["sleep", "1000"])
        except WorkspaceNotFound as error:
            raised.append(error.message)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await clock.until_asleep(1)
        await clock.advance(61)
    assert raised == [f"workspace {made.workspace_id} was deleted"]


async def test_a_clock_set_forward_is_noticed_within_half_a_minute(client: AsyncPyro, clock: ManualClock) -> None:
    made = await client.create_workspace("debian:12", ttl_seconds=3600)
    await clock.until_asleep(1)
    await clock.advance(1)
    clock.set_time(+3600)
    await clock.advance(30)
    await gone(client, made.workspace_id)


async def test_a_clock_set_back_keeps_it_until_the_time_it_was_promised(client: AsyncPyro, clock: ManualClock) -> None:
    made = await client.create_workspace("debian:12", ttl_seconds=60)
    await clock.until_asleep(1)
    clock.set_time(-3600)
    await clock.advance(3600)
    assert made.workspace_id in await ids(client)
    await clock.advance(61)
    await gone(client, made.workspace_id)


async def test_what_expired_while_no_daemon_ran_is_deleted_on_start(
    open_runtime: Open, clock: ManualClock, guests: MemoryDriver
) -> None:
    async with open_runtime(leave_running=True) as client:
        running = await client.create_workspace("debian:12", ttl_seconds=60)
        stopped = await client.create_workspace("debian:12", ttl_seconds=60)
        await client.stop_workspace(stopped.workspace_id)
        later = await client.create_workspace("debian:12", ttl_seconds=7200)
    clock.set_time(+3600)
    async with open_runtime() as client:
        for workspace in (running, stopped):
            await gone(client, workspace.workspace_id)
        assert await ids(client) == {later.workspace_id}
    assert not any(machine.alive for machine in guests.machines.values())


async def test_reaping_deletes_what_is_due_now_and_names_it(client: AsyncPyro, clock: ManualClock) -> None:
    due = await client.create_workspace("debian:12", ttl_seconds=60)
    later = await client.create_workspace("debian:12", ttl_seconds=600)
    assert (await client.reap_expired()).workspace_ids == []
    clock.set_time(+60)
    assert (await client.reap_expired()).workspace_ids == [due.workspace_id]
    assert await ids(client) == {later.workspace_id}
    assert (await client.reap_expired()).workspace_ids == []


async def test_one_that_is_still_being_made_is_left_to_its_maker(
    client: AsyncPyro, clock: ManualClock, guests: MemoryDriver
) -> None:
    async def silence(stream: object) -> None:
        """A guest that never answers: its boot lasts."""

    guests.impostor = silence
    async with anyio.create_task_group() as tasks:

        async def create() -> None:
            await client.create_workspace("debian:12", ttl_seconds=60)

        tasks.start_soon(create)
        with anyio.fail_after(5):
            while not guests.machines:  # noqa: ASYNC110 - the disk is made in a thread
                await anyio.sleep(0.001)
        await clock.advance(300)
        (made,) = (await client.list_workspaces()).workspaces
        assert made.state == "created"
        assert (await client.reap_expired()).workspace_ids == []
        tasks.cancel_scope.cancel()
    assert await ids(client) == set()
