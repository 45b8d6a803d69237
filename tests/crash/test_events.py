"""What is told of, in which order, to how many, and that telling and doing are one transaction."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import InvalidArgument
from pyro_async.operations import Event
from pyro_async.runtime import clock_watch, events
from pyro_async.runtime.clock_watch import ClockJump, Clocks, compare, watch_clock
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.events import Happened
from pyro_async.runtime.runtime import Runtime
from pyro_async.runtime.store import Store
from tests.support.memory_guest import MemoryDriver, MemoryImages


@pytest.fixture
async def guests(no_task_left: None) -> AsyncIterator[MemoryDriver]:
    async with anyio.create_task_group() as tasks:
        driver = MemoryDriver(tasks)
        yield driver
        await driver.end_all()
        tasks.cancel_scope.cancel()


@pytest.fixture
async def runtime(tmp_path: Path, guests: MemoryDriver) -> AsyncIterator[Runtime]:
    images: Any = MemoryImages(tmp_path)
    async with Runtime(tmp_path, driver=guests, images=images) as runtime:
        yield runtime


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[AsyncPyro]:
    async with AsyncPyro(transport=DirectTransport(runtime)) as client:
        yield client


async def take(client: AsyncPyro, count: int, into: list[Event], after: int = 0) -> None:
    async with client.follow_events(after=after, limit=count) as stream:
        into.extend([event async for event in stream])


async def test_a_life_is_told_in_order(client: AsyncPyro) -> None:
    workspace = (await client.create_workspace("debian:12", name="ws")).workspace_id
    await client.exec_workspace("ws", ["false"], cwd="/")
    with pytest.raises(InvalidArgument):
        await client.exec_workspace("ws", ["true"], cwd="/nowhere")
    await client.stop_workspace("ws")
    await client.start_workspace("ws")
    await client.delete_workspace("ws")
    found = await client.list_events()
    assert [event.kind for event in found.events] == [
        *("workspace.created", "workspace.started"),
        *("exec.started", "exec.ended", "exec.started", "exec.refused"),
        *("workspace.stopped", "workspace.started", "workspace.deleted"),
    ]
    assert {event.workspace_id for event in found.events} == {workspace}
    assert found.events[3].detail["exit_code"] == 1
    assert [event.event_id for event in found.events] == list(range(1, 10))
    assert found.cursor == 9


async def test_a_machine_that_dies_is_told_of(client: AsyncPyro, guests: MemoryDriver) -> None:
    await client.create_workspace("debian:12")
    await guests.newest.die("killed by signal 9")
    (event,) = [event async for event in client.follow_events(after=2, limit=1)]
    assert event.kind == "workspace.failed"
    assert "killed by signal 9" in str(event.detail["failure"])


async def test_a_cursor_and_a_limit_cut_pages(client: AsyncPyro) -> None:
    await client.create_workspace("debian:12")
    first = await client.list_events(limit=1)
    assert [event.event_id for event in first.events] == [1]
    rest = await client.list_events(after=first.cursor)
    assert [event.event_id for event in rest.events] == [2]
    assert await client.list_events(after=rest.cursor) == type(rest)(events=[], cursor=2)
    with pytest.raises(InvalidArgument, match="lies behind the last event, 2"):
        await client.list_events(after=3)


async def test_a_hundred_followers_see_the_same(client: AsyncPyro) -> None:
    seen: list[list[Event]] = [[] for _ in range(100)]
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for one in seen:
                tasks.start_soon(take, client, 22, one)
            await client.create_workspace("debian:12", name="ws")
            for _ in range(10):
                await client.exec_workspace("ws", ["true"], cwd="/")
    assert seen[0] == (await client.list_events()).events
    assert all(one == seen[0] for one in seen)


async def test_a_follower_that_takes_its_time_delays_nobody(client: AsyncPyro) -> None:
    async with client.follow_events() as stream:
        await client.create_workspace("debian:12", name="ws")
        for _ in range(20):
            await client.exec_workspace("ws", ["true"], cwd="/")
        late = [(await anext(stream)).event_id for _ in range(42)]
    assert late == list(range(1, 43))


async def test_only_the_newest_events_are_kept(client: AsyncPyro, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENTS_KEPT", 10)
    monkeypatch.setattr(events, "_SLACK", 4)
    await client.create_workspace("debian:12", name="ws")
    for _ in range(20):
        await client.exec_workspace("ws", ["true"], cwd="/")
    kept = [event.event_id for event in (await client.list_events()).events]
    assert kept == list(range(kept[0], 43))
    assert 10 <= len(kept) < 14


def test_what_is_undone_is_not_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    with pytest.raises(ZeroDivisionError), store._transaction([Happened("never", None)]):
        _ = 1 / 0
    assert store.events.newest() == 0
    store.close()


async def test_a_fault_point_lies_between_any_two_transactions(
    client: AsyncPyro, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    transaction = Store._transaction

    def noted(self: Store, happened: Any) -> Any:
        steps.append("transaction")
        return transaction(self, happened)

    monkeypatch.setattr(Store, "_transaction", noted)
    for module in ("commands", "execution", "leftovers", "runtime", "supervisor", "workspace"):
        monkeypatch.setattr(f"pyro_async.runtime.{module}.fault_point", steps.append)
    await client.create_workspace("debian:12", name="ws")
    await client.exec_workspace("ws", ["true"], cwd="/")
    await client.update_workspace("ws", name="other")
    await client.stop_workspace("other")
    await client.start_workspace("other")
    await guests.newest.die()
    await client.list_events(after=0, limit=1)
    await client.delete_workspace("other")
    pairs = set(itertools.pairwise(steps))
    assert ("transaction", "transaction") not in pairs
    assert steps.count("transaction") > 10


# --- the host's clock -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "jump"),
    [
        (Clocks(11.0, 11.0, 101.0), None),
        (Clocks(11.4, 11.4, 101.4), None),
        (Clocks(11.0, 11.0, 3701.0), ClockJump("set", 3600.0)),
        (Clocks(11.0, 11.0, -3499.0), ClockJump("set", -3600.0)),
        (Clocks(11.0, 71.0, 161.0), ClockJump("suspended", 60.0)),
        (Clocks(15.0, 15.0, 105.0), ClockJump("stopped", 4.0)),
    ],
)
def test_three_clocks_tell_what_happened(after: Clocks, jump: ClockJump | None) -> None:
    assert compare(Clocks(10.0, 10.0, 100.0), after) == jump


async def test_the_watch_reports_each_jump_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_watch, "INTERVAL_SECONDS", 0.0)
    readings = iter([Clocks(0, 0, 0), Clocks(1, 1, 1), Clocks(1, 1, 1), Clocks(2, 2, 3602), Clocks(2, 2, 3602)])
    jumps: list[ClockJump] = []

    async def note(jump: ClockJump) -> None:
        jumps.append(jump)

    def read() -> Clocks:
        if reading := next(readings, None):
            return reading
        raise EOFError

    with pytest.raises(EOFError):
        await watch_clock(note, read=read)
    assert jumps == [ClockJump("set", 3600)]


async def test_after_a_jump_every_guest_gets_the_time(
    runtime: Runtime, client: AsyncPyro, guests: MemoryDriver
) -> None:
    for name in ("a", "b", "stopped"):
        await client.create_workspace("debian:12", name=name)
    await client.stop_workspace("stopped")
    await runtime._clock_jumped(ClockJump("set", 3600.0))
    machines = [machine for machine in guests.machines.values() if machine.alive]
    assert [len(machine.system.configured) for machine in machines] == [2, 2]
    for machine in machines:
        assert abs(machine.system.configured[-1].clock_ns - time.time_ns()) < 5e9
    last = (await client.list_events()).events[-1]
    assert (last.kind, last.detail) == ("host.clock_jumped", {"cause": "set", "seconds": 3600.0})


async def test_a_guest_that_does_not_take_the_time_keeps_nobody_waiting(
    runtime: Runtime, client: AsyncPyro, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_async.runtime.workspace.CLOCK_SECONDS", 0.1)
    await client.create_workspace("debian:12", name="mute")
    guests.newest.serve = None
    await guests.newest.break_link()
    with anyio.fail_after(5):
        await runtime._clock_jumped(ClockJump("suspended", 60.0))
    await guests.newest.die()  # else the runtime would try to shut it down in good order
