"""Daemons die around real VMs: what only those can show."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator

import anyio
import pytest

from pyro_async.errors import LinkLost
from pyro_async.operations import ExecOutput
from pyro_async.transport import stop_daemon
from tests.crash.conftest import Daemons, ended, kinds, until

pytestmark = [pytest.mark.vm, pytest.mark.slow]

TICKER = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.02; done"
TICKS = "".join(f"{number}\n" for number in range(300))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def endless_input() -> AsyncIterator[bytes]:
    number = 0
    while True:
        yield b"%06d\n" % number
        number += 1
        await anyio.sleep(0.005)


async def test_a_machine_that_was_not_recorded_yet_is_ended(vm_daemons: Daemons) -> None:
    with anyio.fail_after(120):
        assert vm_daemons.start("machine.spawned")
        async with vm_daemons.client() as client:
            with pytest.raises(LinkLost):
                await client.create_workspace("debian:12")
        assert vm_daemons.died_at_its_fault()
        assert len(vm_daemons.processes()) == 1
        assert vm_daemons.start()
        assert vm_daemons.processes() == {}
        async with vm_daemons.client() as client:
            assert (await client.list_workspaces()).workspaces == []
            assert await kinds(client, "recovery.") == ["recovery.reaped", "recovery.undone"]


async def test_commands_run_on_over_a_stop_a_kill_and_a_suspended_host(vm_daemons: Daemons) -> None:
    """Output and standard input are under way each time; then the host sleeps, and the guest's clock is right again."""
    under_way = anyio.Event()

    def note(event: object) -> None:
        if isinstance(event, ExecOutput):
            under_way.set()

    with anyio.fail_after(240):
        assert vm_daemons.start()
        async with vm_daemons.client() as client:
            workspace = (await client.create_workspace("debian:12", name="ws")).workspace_id

            async def tick() -> None:
                with pytest.raises(LinkLost):
                    await client.exec_workspace("ws", TICKER, on_event=note)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tick)
                await under_way.wait()
                assert await stop_daemon(vm_daemons.home)
        machine = vm_daemons.machine(workspace)
        assert vm_daemons.start()
        async with vm_daemons.client() as client:
            under_way = anyio.Event()

            async def feed() -> None:
                with pytest.raises(LinkLost):
                    await client.exec_workspace("ws", "cat", stdin=endless_input(), on_event=note)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed)
                await under_way.wait()
                vm_daemons.kill()
        assert vm_daemons.start()
        assert vm_daemons.machine(workspace) == machine
        async with vm_daemons.client() as client:
            assert (await ended(client, sequence=1)).stdout == TICKS
            fed = (await client.logs_workspace("ws")).entries[-1]
            echoed = (await client.cancel_exec("ws", fed.exec_id)).stdout
            assert echoed
            assert "".join(f"{number:06d}\n" for number in range(echoed.count("\n") + 1)).startswith(echoed)

            vm_daemons.send_all(signal.SIGSTOP)
            await anyio.sleep(5)
            vm_daemons.send_all(signal.SIGCONT)
            async with client.follow_events() as events:
                async for event in events:
                    if event.kind == "host.clock_jumped":
                        break
            guest = float((await client.exec_workspace("ws", ["date", "+%s.%N"])).stdout)
            assert abs(guest - time.time()) < 2

            os.kill(machine, signal.SIGKILL)
            await until(lambda: vm_daemons.processes() == {})
            await client.delete_workspace("ws")
        assert list((vm_daemons.home / "workspaces").iterdir()) == []


async def test_a_stop_that_was_cut_short_is_finished_in_good_order(vm_daemons: Daemons) -> None:
    with anyio.fail_after(240):
        assert vm_daemons.start("stop.recorded")
        async with vm_daemons.client() as client:
            workspace = (await client.create_workspace("debian:12", name="ws")).workspace_id
            await client.exec_workspace("ws", "seq 100000 >numbers")
            with pytest.raises(LinkLost):
                await client.stop_workspace("ws")
        assert vm_daemons.died_at_its_fault()
        assert vm_daemons.start()
        assert vm_daemons.processes() == {}
        assert vm_daemons.sockets(workspace) == []
        async with vm_daemons.client() as client:
            await client.start_workspace("ws")
            same = "test $(md5sum <numbers | cut -c-32) = $(seq 100000 | md5sum | cut -c-32)"
            assert (await client.exec_workspace("ws", same)).exit_code == 0
            await client.delete_workspace("ws")
