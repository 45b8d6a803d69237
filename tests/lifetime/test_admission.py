"""Who may boot, in which order, and what happens when the host's memory is spoken for."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_async import AsyncPyro
from pyro_async.errors import HostMemoryFull, InvalidArgument, PyroError
from pyro_async.operations import Progress
from pyro_async.runtime.admission import (
    MEMORY_VARIABLE,
    OVERHEAD_MIB,
    Admission,
    BootQueue,
    Limits,
    MemoryUse,
    Ticket,
    check_memory,
)
from tests.lifetime.conftest import Open
from tests.support.memory_guest import MemoryDriver

VM = 512 + OVERHEAD_MIB


def use(name: str, mem_mib: int = 512, quiet_seconds: float = 0.0) -> MemoryUse:
    return MemoryUse(workspace_id=name, label=name, mem_mib=mem_mib, quiet_seconds=quiet_seconds)


# --- the queue, without waiting ---------------------------------------------------------------------------------------


def test_boots_beyond_the_slots_wait_in_the_order_in_which_they_came() -> None:
    queue = BootQueue(2)
    first, second, third, fourth = (queue.join() for _ in range(4))
    assert [queue.ahead(ticket) for ticket in (first, second, third, fourth)] == [0, 0, 2, 3]
    queue.leave(second)
    assert [queue.ahead(ticket) for ticket in (first, third, fourth)] == [0, 0, 2]


def test_who_gives_up_waiting_makes_room_for_those_behind() -> None:
    queue = BootQueue(1)
    first, second, third = (queue.join() for _ in range(3))
    queue.leave(second)
    assert queue.ahead(third) == 1
    queue.leave(first)
    assert queue.ahead(third) == 0


@given(st.integers(1, 4), st.lists(st.integers(0, 9), max_size=60))
def test_no_slot_is_wasted_nobody_is_overtaken_and_nothing_is_left(slots: int, moves: list[int]) -> None:
    queue = BootQueue(slots)
    present: list[Ticket] = []
    for move in moves:
        if move < 6 or not present:
            present.append(queue.join())
        else:
            queue.leave(present.pop(move % len(present)))
        booting = [ticket for ticket in present if queue.ahead(ticket) == 0]
        assert booting == present[: len(booting)]
        assert len(booting) == min(slots, len(present))
    for ticket in present:
        queue.leave(ticket)
    assert len(queue) == 0


# --- memory, without a host -------------------------------------------------------------------------------------------


def test_a_vm_fits_up_to_the_last_mebibyte() -> None:
    check_memory(use("new"), [use("a"), use("b")], 3 * VM)
    with pytest.raises(HostMemoryFull, match="1 MiB are missing"):
        check_memory(use("new"), [use("a"), use("b")], 3 * VM - 1)


def test_a_workspace_that_starts_again_does_not_count_twice() -> None:
    check_memory(use("a"), [use("a")], VM)


def test_the_hint_names_the_longest_unused_and_no_more_than_needed() -> None:
    running = [use("busy", 8192), use("hour", quiet_seconds=3600), use("day", quiet_seconds=86400)]
    taken = sum(each.total_mib for each in running)
    with pytest.raises(HostMemoryFull) as raised:
        check_memory(use("new"), running, taken + 100)
    assert raised.value.hint.startswith(f"stop or delete day to free {VM} MiB")
    with pytest.raises(HostMemoryFull) as raised:
        check_memory(use("new", 1024), running, taken)
    assert raised.value.hint.startswith(f"stop or delete day and hour to free {2 * VM} MiB")
    assert MEMORY_VARIABLE in raised.value.hint


def test_a_vm_larger_than_the_limit_is_told_what_could_be_had() -> None:
    with pytest.raises(HostMemoryFull) as raised:
        check_memory(use("new", 4096), [use("a")], 2048)
    assert raised.value.hint.startswith(f"ask for at most {2048 - OVERHEAD_MIB} MiB")
    with pytest.raises(HostMemoryFull) as raised:
        check_memory(use("new"), [], 64)
    assert raised.value.hint.startswith("raise")


@given(
    st.integers(128, 32768),
    st.lists(st.tuples(st.integers(128, 8192), st.floats(0, 1e6)), max_size=20),
    st.integers(0, 100_000),
)
def test_ending_what_the_hint_names_makes_room(wanted: int, others: list[tuple[int, float]], limit: int) -> None:
    running = [use(f"ws{number}", mem, quiet) for number, (mem, quiet) in enumerate(others)]
    new = use("new", wanted)
    try:
        check_memory(new, running, limit)
    except HostMemoryFull as error:
        if error.hint.startswith("stop or delete "):
            named = (
                error.hint.removeprefix("stop or delete ").partition(" to free")[0].replace(" and ", ", ").split(", ")
            )
            check_memory(new, [each for each in running if each.label not in named], limit)
        else:
            assert new.total_mib > limit
    else:
        assert sum(each.total_mib for each in (*running, new)) <= limit


def test_the_environment_sets_the_limit() -> None:
    assert Limits.of_host({MEMORY_VARIABLE: "2048"}).memory_mib == 2048
    assert Limits.of_host({}).memory_mib > 0
    assert Limits.of_host({}).boots >= 1
    for nonsense in ("many", "0", "-5", "1.5"):
        with pytest.raises(InvalidArgument, match=MEMORY_VARIABLE):
            Limits.of_host({MEMORY_VARIABLE: nonsense})


# --- waiting ----------------------------------------------------------------------------------------------------------


class Boots:
    """Boots that last until they are told to end."""

    def __init__(self, slots: int, memory_mib: int = 10**6) -> None:
        self.running: list[MemoryUse] = []
        self.admission = Admission(Limits(memory_mib=memory_mib, boots=slots), lambda: self.running)
        self.begun: list[str] = []
        self.scopes: dict[str, anyio.CancelScope] = {}
        self.said: dict[str, list[str]] = {}
        self.refused: list[str] = []

    async def boot(self, name: str) -> None:
        said = self.said[name] = []

        def report(step: Progress) -> None:
            said.append(step.detail)

        with anyio.CancelScope() as self.scopes[name]:
            try:
                async with self.admission.boot(use(name), report):
                    self.begun.append(name)
                    await anyio.sleep_forever()
            except HostMemoryFull:
                self.refused.append(name)


async def test_waiting_boots_begin_in_order_and_say_how_many_are_before_them() -> None:
    boots = Boots(2)
    async with anyio.create_task_group() as tasks:
        for name in "abcd":
            tasks.start_soon(boots.boot, name)
            await anyio.wait_all_tasks_blocked()
        assert boots.begun == ["a", "b"]
        assert boots.said == {"a": [], "b": [], "c": ["waiting for 2 others"], "d": ["waiting for 3 others"]}
        boots.scopes["b"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert boots.begun == ["a", "b", "c"]
        assert boots.said["d"][-1] == "waiting for 2 others"
        boots.scopes["a"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert boots.begun == ["a", "b", "c", "d"]
        tasks.cancel_scope.cancel()


async def test_a_cancelled_wait_gives_its_place_to_the_next() -> None:
    boots = Boots(1)
    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(boots.boot, name)
            await anyio.wait_all_tasks_blocked()
        boots.scopes["b"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert boots.said["c"][-1] == "waiting for 1 other"
        boots.scopes["a"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert boots.begun == ["a", "c"]
        tasks.cancel_scope.cancel()


async def test_boots_that_have_not_begun_to_run_count_and_a_refusal_lets_the_next_try() -> None:
    boots = Boots(3, memory_mib=2 * VM)
    boots.running = [use("old")]
    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(boots.boot, name)
            await anyio.wait_all_tasks_blocked()
        assert (boots.begun, boots.refused) == (["a"], ["b", "c"])
        boots.scopes["a"].cancel()
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(boots.boot, "d")
        await anyio.wait_all_tasks_blocked()
        assert boots.begun == ["a", "d"]
        tasks.cancel_scope.cancel()


# --- through the runtime ----------------------------------------------------------------------------------------------


async def outcomes(client: AsyncPyro, count: int, **options: Any) -> list[str]:
    """What became of workspaces that are all created at once."""
    found: list[str] = []

    async def create(number: int) -> None:
        try:
            await client.create_workspace("debian:12", name=f"ws{number}", **options)
            found.append("made")
        except PyroError as error:
            found.append(error.code)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(create, number)
    return sorted(found)


async def test_creates_that_arrive_together_fill_the_memory_and_not_more(
    open_runtime: Open, guests: MemoryDriver
) -> None:
    async with open_runtime(limits=Limits(memory_mib=3 * VM, boots=2)) as client:
        assert await outcomes(client, 8) == ["host_memory_full"] * 5 + ["made"] * 3
        assert len((await client.list_workspaces()).workspaces) == len(guests.machines) == 3


async def test_what_is_stopped_or_deleted_makes_room_for_another(open_runtime: Open) -> None:
    async with open_runtime(limits=Limits(memory_mib=2 * VM, boots=1)) as client:
        for name in ("first", "second"):
            await client.create_workspace("debian:12", name=name)
        with pytest.raises(HostMemoryFull, match="2 running take") as raised:
            await client.create_workspace("debian:12", name="third")
        assert "stop or delete first" in raised.value.hint
        await client.stop_workspace("first")
        await client.create_workspace("debian:12", name="third")
        with pytest.raises(HostMemoryFull):
            await client.start_workspace("first")
        found = await client.status_workspace("first")
        assert (found.state, found.failure) == ("stopped", None)
        await client.delete_workspace("second")
        assert (await client.start_workspace("first")).state == "started"


async def test_a_refused_create_leaves_its_name_free(open_runtime: Open) -> None:
    async with open_runtime(limits=Limits(memory_mib=VM, boots=1)) as client:
        with pytest.raises(HostMemoryFull):
            await client.create_workspace("debian:12", name="ws", mem_mib=1024)
        await client.create_workspace("debian:12", name="ws")


async def test_adopted_machines_count(open_runtime: Open) -> None:
    limits = Limits(memory_mib=VM, boots=1)
    async with open_runtime(limits=limits, leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws")
    async with open_runtime(limits=limits) as client:
        with pytest.raises(HostMemoryFull, match="1 running"):
            await client.create_workspace("debian:12")


async def test_a_queued_create_that_is_cancelled_leaves_nothing(open_runtime: Open, guests: MemoryDriver) -> None:
    async def silence(stream: object) -> None:
        """A guest that never answers: its boot lasts."""

    queued = anyio.Event()

    def report(step: Progress) -> None:
        if step.phase == "queue":
            queued.set()

    async with open_runtime(limits=Limits(memory_mib=10 * VM, boots=1)) as client:
        guests.impostor = silence
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.create_workspace, "debian:12")
            await anyio.wait_all_tasks_blocked()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as waiting:

                    async def create() -> None:
                        await client.create_workspace("debian:12", name="queued", on_progress=report)

                    waiting.start_soon(create)
                    await queued.wait()
                    scope.cancel()
            assert len((await client.list_workspaces()).workspaces) == 1
            tasks.cancel_scope.cancel()
        guests.impostor = None
        assert (await client.list_workspaces()).workspaces == []
        await client.create_workspace("debian:12", name="queued")
