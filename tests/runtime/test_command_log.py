"""A workspace's log: everything once, from any cursor on."""

from __future__ import annotations

from collections import defaultdict

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import InvalidArgument
from pyro_async.operations import LogEnded, LogEvent, LogOutput, LogStarted
from tests.runtime.conftest import Open


@pytest.fixture(autouse=True)
def _guarded(no_task_left: None) -> None:
    """Before any other fixture starts a runtime, whose own tasks come and go while the test runs."""


def printed(events: list[LogEvent]) -> dict[str, bytes]:
    found: dict[str, bytes] = defaultdict(bytes)
    for event in events:
        if isinstance(event, LogOutput):
            found[event.exec_id] += event.data
    return dict(found)


async def until_ended(client: AsyncPyro, count: int, **options: str | int) -> list[LogEvent]:
    """The log up to the end of ``count`` commands."""
    heard: list[LogEvent] = []
    with anyio.fail_after(10):
        async with client.follow_logs("ws", **options) as events:  # type: ignore[arg-type]
            while sum(isinstance(event, LogEnded) for event in heard) < count:
                heard.append(await anext(events))
    return heard


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_what_ran_and_what_runs_is_told_in_order(client: AsyncPyro) -> None:
    first = await client.exec_workspace("ws", ["sh", "-c", "echo 1; exit 3"])
    heard: list[LogEvent] = []

    async def follow() -> None:
        heard.extend(await until_ended(client, 2))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        second = await client.exec_workspace("ws", "echo 2 >&2")
    started, output, ended, *rest = heard
    assert isinstance(started, LogStarted)
    assert (started.exec_id, started.sequence, started.command) == (first.exec_id, 1, "sh -c 'echo 1; exit 3'")
    assert isinstance(output, LogOutput)
    assert (output.exec_id, output.stream, output.data) == (first.exec_id, "stdout", b"1\n")
    assert isinstance(ended, LogEnded)
    assert (ended.exec_id, ended.exit_code) == (first.exec_id, 3)
    assert [(type(event), event.exec_id) for event in rest] == [
        (kind, second.exec_id) for kind in (LogStarted, LogOutput, LogEnded)
    ]


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_every_cursor_leads_to_exactly_the_rest(client: AsyncPyro) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            script = f"for i in 1 2 3; do echo {number}-$i; sleep 0.0{number + 1}; done"
            tasks.start_soon(client.exec_workspace, "ws", script)
    whole = await until_ended(client, 4)
    for position, event in enumerate(whole):
        ended = sum(isinstance(each, LogEnded) for each in whole[: position + 1])
        rest = await until_ended(client, 4 - ended, cursor=event.cursor)
        joined = whole[: position + 1] + rest
        assert printed(joined) == printed(whole)
        assert sorted((type(each).__name__, each.exec_id) for each in joined if not isinstance(each, LogOutput)) == (
            sorted((type(each).__name__, each.exec_id) for each in whole if not isinstance(each, LogOutput))
        )


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_only_as_many_commands_of_the_past_as_asked_for(client: AsyncPyro) -> None:
    for number in range(5):
        last = await client.exec_workspace("ws", f"echo {number}")
    assert printed(await until_ended(client, 1, limit=1)) == {last.exec_id: b"4\n"}


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_a_follower_that_does_not_read_holds_nobody_up(client: AsyncPyro) -> None:
    async with client.follow_logs("ws") as events:
        with anyio.fail_after(10):
            await client.exec_workspace("ws", "head -c 20000000 /dev/zero")
        assert isinstance(await anext(events), LogStarted)


async def test_the_log_goes_on_under_a_later_runtime(open_runtime: Open) -> None:
    async with open_runtime(leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws")
        begun = await client.exec_workspace("ws", "echo a; until [ -e done ]; do sleep 0.01; done; echo b", detach=True)
        async with client.follow_logs("ws") as events:
            first = [await anext(events), await anext(events)]
    async with open_runtime() as client:
        await client.exec_workspace("ws", "touch done")
        rest = await until_ended(client, 2, cursor=first[-1].cursor)
        assert printed([*first, *rest]) == {begun.exec_id: b"a\nb\n"}


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_deleting_the_workspace_ends_its_log(client: AsyncPyro) -> None:
    heard: list[LogEvent] = []

    async def follow() -> None:
        async with client.follow_logs("ws") as events:
            heard.extend([event async for event in events])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await client.exec_workspace("ws", "sleep 1000", detach=True)
            await anyio.wait_all_tasks_blocked()
            await client.delete_workspace("ws")
    assert [type(event) for event in heard] == [LogStarted, LogEnded]
    assert heard[-1].cause == "lost"  # type: ignore[union-attr]


@pytest.mark.usefixtures("no_task_left", "workspace_running")
@pytest.mark.parametrize("cursor", ["", "x", "1,", "1,2", "-1", "1,2:3:4", "9" * 40])
async def test_what_is_no_cursor_is_refused(client: AsyncPyro, cursor: str) -> None:
    with pytest.raises(InvalidArgument, match="not a log's cursor"):
        await anext(client.follow_logs("ws", cursor=cursor))
