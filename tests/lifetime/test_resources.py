"""What status says a workspace uses."""

from __future__ import annotations

import os
import time

import anyio
import pytest

from pyro_agent.stats import read_stats
from pyro_async import AsyncPyro
from pyro_async.runtime import workspace as workspace_module
from pyro_async.vmm.process import ProcessIdentity
from pyro_async.vmm.usage import process_usage
from pyro_async.wire.guest import Stats
from tests.support.memory_guest import MemoryDriver


def test_the_agents_figures_are_the_machines() -> None:
    began, stats = time.process_time(), read_stats("/")
    assert stats.mem_total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < stats.mem_available <= stats.mem_total
    assert 0 < stats.disk_free <= stats.disk_total
    assert stats.process_count > 1
    assert stats.uptime_seconds > 0
    while time.process_time() - began < 0.2:
        """Uses the CPU."""
    assert read_stats("/").cpu_seconds - stats.cpu_seconds >= 0.15


def test_a_processs_usage_is_that_of_this_very_process() -> None:
    me = ProcessIdentity.of(os.getpid())
    usage = process_usage(me)
    assert usage is not None
    assert usage.rss > 10 << 20
    assert usage.pss is None or 0 < usage.pss <= usage.rss
    assert usage.cpu_seconds == pytest.approx(time.process_time(), rel=0.5, abs=1)
    assert process_usage(ProcessIdentity(pid=me.pid, start_ticks=me.start_ticks + 1, boot_id=me.boot_id)) is None
    assert process_usage(ProcessIdentity(pid=2**22 + 1, start_ticks=1, boot_id=me.boot_id)) is None


async def test_a_running_workspace_tells_what_it_uses(client: AsyncPyro, guests: MemoryDriver) -> None:
    await client.create_workspace("debian:12", name="ws")
    guests.newest.system.cpu_seconds = 4.5
    async with client.stream_exec("ws", ["sleep", "1000"]) as events:
        await anext(aiter(events))
        used = (await client.status_workspace("ws")).resources
    assert used is not None
    assert used.guest is not None
    assert (used.guest.cpu_seconds, used.running_commands) == (4.5, 1)
    assert used.vmm is None  # the in-memory machine is no process


async def test_a_list_asks_no_guest_and_a_stopped_workspace_uses_nothing(
    client: AsyncPyro, guests: MemoryDriver
) -> None:
    await client.create_workspace("debian:12", name="ws")
    (listed,) = (await client.list_workspaces()).workspaces
    assert listed.resources is None
    await client.stop_workspace("ws")
    assert (await client.status_workspace("ws")).resources is None


async def test_a_guest_that_does_not_answer_delays_status_and_does_not_fail_it(
    client: AsyncPyro, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(*_: object) -> None:
        await anyio.sleep_forever()

    await client.create_workspace("debian:12", name="ws")
    monkeypatch.setitem(guests.newest.agent._methods, Stats.method, silence)
    monkeypatch.setattr(workspace_module, "STATS_SECONDS", 0.05)
    found = await client.status_workspace("ws")
    assert found.state == "started"
    assert found.resources is not None
    assert found.resources.guest is None


async def test_an_agent_that_knows_no_figures_is_no_failure(client: AsyncPyro, guests: MemoryDriver) -> None:
    await client.create_workspace("debian:12", name="ws")
    del guests.newest.agent._methods[Stats.method]
    found = await client.status_workspace("ws")
    assert found.resources is not None
    assert found.resources.guest is None


async def test_figures_that_make_no_sense_fail_the_workspace_and_not_the_caller(
    client: AsyncPyro, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lies(*_: object) -> object:
        return [-1.0] * 7

    await client.create_workspace("debian:12", name="ws")
    monkeypatch.setitem(guests.newest.agent._methods, Stats.method, lies)
    found = await client.status_workspace("ws")
    assert found.resources is None or found.resources.guest is None
    await anyio.wait_all_tasks_blocked()
    assert (await client.list_workspaces()).workspaces[0].state == "failed"
