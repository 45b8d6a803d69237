"""Commands that outlast their callers: detached ones, and those that may be asked for again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.calls import Call
from pyro_async.errors import Conflict, ExecNotFound, InvalidArgument, LinkLost
from pyro_async.operations import (
    ExecOutput,
    ExecPage,
    ExecResult,
    ExecStarted,
    ExecWorkspace,
    LogDropped,
    LogOutput,
    LogStarted,
    LogsWorkspace,
    OutputDropped,
    WaitExec,
)
from pyro_async.runtime import output
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from tests.runtime.conftest import Open
from tests.support.memory_guest import MemoryDriver, MemoryImages


@pytest.fixture(autouse=True)
def _guarded(no_task_left: None) -> None:
    """Before any other fixture starts a runtime, whose own tasks come and go while the test runs."""


#: Goes on until it is told to stop, by a file.
UNTIL_TOLD = "echo begun; until [ -e done ]; do sleep 0.01; done; echo ended"


SEGMENT = 1000
#: Bytes of output that come in many pieces.
MUCH = 4_000_000


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less room for output than one pipe's worth; to be asked for before anything has printed."""
    monkeypatch.setattr(output, "SEGMENT_SIZE", SEGMENT)
    monkeypatch.setattr(output.OutputStore.__init__, "__defaults__", (4 * SEGMENT,))


@pytest.fixture
async def runtime(home: Path, guests: MemoryDriver) -> AsyncIterator[Runtime]:
    home.mkdir()
    async with Runtime(home, driver=guests, images=MemoryImages(home)) as runtime:
        async with AsyncPyro(transport=DirectTransport(runtime)) as client:
            await client.create_workspace("debian:12", name="ws")
        yield runtime


# --- detached ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_a_detached_command_goes_on_without_its_caller(client: AsyncPyro) -> None:
    with anyio.fail_after(20):
        begun = await client.exec_workspace("ws", UNTIL_TOLD, detach=True)
        assert begun.exit_code is None
        assert (await client.wait_exec("ws", begun.exec_id, wait_seconds=0)).exit_code is None
        await client.exec_workspace("ws", "touch done")
        ended = await client.wait_exec("ws", begun.exec_id)
        assert (ended.exec_id, ended.exit_code, ended.stdout) == (begun.exec_id, 0, "begun\nended\n")


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_waiting_has_an_end_that_leaves_the_command_alone(client: AsyncPyro) -> None:
    begun = await client.exec_workspace("ws", UNTIL_TOLD, detach=True)
    with anyio.fail_after(20):
        assert (await client.wait_exec("ws", begun.exec_id, wait_seconds=0.05)).exit_code is None
    assert (await client.cancel_exec("ws", begun.exec_id)).cancelled
    assert (await client.wait_exec("ws", begun.exec_id)).cancelled


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_a_detached_command_that_the_guest_refuses_fails_at_once(client: AsyncPyro) -> None:
    with pytest.raises(InvalidArgument, match="nosuchuser"):
        await client.exec_workspace("ws", "true", user="nosuchuser", detach=True)
    assert (await client.status_workspace("ws")).command_count == 0


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_a_detached_command_cannot_have_input(client: AsyncPyro) -> None:
    with pytest.raises(InvalidArgument, match="no standard input"):
        await client.exec_workspace("ws", "cat", stdin="text", detach=True)


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_commands_that_do_not_exist_cannot_be_waited_for(client: AsyncPyro) -> None:
    with pytest.raises(ExecNotFound):
        await client.wait_exec("ws", "nope")
    with pytest.raises(ExecNotFound):
        await client.read_exec("ws", "nope")


@pytest.mark.slow
@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_a_thousand_detached_commands_are_listed_and_waited_for(client: AsyncPyro) -> None:
    with anyio.fail_after(60):
        begun = [
            await client.exec_workspace("ws", f"echo {number}; exit {number % 7}", detach=True)
            for number in range(1000)
        ]
        ended = [await client.wait_exec("ws", each.exec_id) for each in begun]
        entries = (await client.logs_workspace("ws", limit=1000)).entries
    assert [result.stdout for result in ended] == [f"{number}\n" for number in range(1000)]
    assert [result.exit_code for result in ended] == [number % 7 for number in range(1000)]
    assert [entry.exec_id for entry in entries] == [each.exec_id for each in begun]


# --- idempotency keys -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_the_same_key_again_gives_the_same_result(client: AsyncPyro) -> None:
    first = await client.exec_workspace("ws", "echo ran >>runs; echo out", idempotency_key="k")
    heard: list[object] = []
    second = await client.exec_workspace("ws", "echo ran >>runs; echo out", idempotency_key="k", on_event=heard.append)
    assert first == second
    assert [type(event).__name__ for event in heard] == ["ExecStarted", "ExecOutput"]
    assert (await client.exec_workspace("ws", "cat runs")).stdout == "ran\n"


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_two_at_once_with_one_key_are_one_command(client: AsyncPyro) -> None:
    results: list[ExecResult] = []

    async def ask() -> None:
        results.append(await client.exec_workspace("ws", f"echo ran >>runs; {UNTIL_TOLD}", idempotency_key="k"))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await client.exec_workspace("ws", "touch done")
    assert len(results) == 5
    assert all(result == results[0] for result in results)
    assert (await client.exec_workspace("ws", "cat runs")).stdout == "ran\n"


@pytest.mark.usefixtures("no_task_left", "workspace_running")
@pytest.mark.parametrize(
    "other", [{"command": "false"}, {"cwd": "/"}, {"env": {"A": "b"}}, {"user": "0"}, {"stdin": "text"}]
)
async def test_the_same_key_for_another_command_is_a_conflict(client: AsyncPyro, other: dict[str, object]) -> None:
    await client.exec_workspace("ws", "true", idempotency_key="k")
    with pytest.raises(Conflict, match="belongs to another command"):
        await client.exec_workspace("ws", **{"command": "true", "idempotency_key": "k", **other})  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_a_key_belongs_to_one_workspace(client: AsyncPyro) -> None:
    await client.create_workspace("debian:12", name="other")
    assert (await client.exec_workspace("ws", "true", idempotency_key="k")).exit_code == 0
    assert (await client.exec_workspace("other", "false", idempotency_key="k")).exit_code == 1
    await client.delete_workspace("other")


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_a_refused_command_does_not_use_up_its_key(client: AsyncPyro) -> None:
    with pytest.raises(InvalidArgument):
        await client.exec_workspace("ws", "true", user="nosuchuser", idempotency_key="k")
    assert (await client.exec_workspace("ws", "true", idempotency_key="k")).exit_code == 0


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_only_the_first_callers_input_counts(client: AsyncPyro) -> None:
    first = await client.exec_workspace("ws", "cat", stdin="one", idempotency_key="k")
    second = await client.exec_workspace("ws", "cat", stdin="two", idempotency_key="k")
    assert first.stdout == second.stdout == "one"


async def test_a_later_runtime_still_knows_the_key(open_runtime: Open) -> None:
    async with open_runtime(leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws")
        first = await client.exec_workspace("ws", "echo ran >>runs; echo out", idempotency_key="k")
        running = await client.exec_workspace("ws", UNTIL_TOLD, idempotency_key="l", detach=True)
    async with open_runtime(leave_running=True) as client:
        assert await client.exec_workspace("ws", "echo ran >>runs; echo out", idempotency_key="k") == first
        assert (await client.exec_workspace("ws", "cat runs; touch done")).stdout == "ran\n"
        ended = await client.exec_workspace("ws", UNTIL_TOLD, idempotency_key="l")
        assert (ended.exec_id, ended.stdout) == (running.exec_id, "begun\nended\n")
        await client.stop_workspace("ws")
        assert await client.exec_workspace("ws", UNTIL_TOLD, idempotency_key="l") == ended


async def test_a_command_that_was_recorded_but_never_reached_the_guest_runs_once(
    open_runtime: Open, guests: MemoryDriver
) -> None:
    command = "echo ran >>runs"

    async def ask(client: AsyncPyro) -> None:
        with pytest.raises(LinkLost):
            await client.exec_workspace("ws", command, detach=True, idempotency_key="k")

    async with anyio.create_task_group() as tasks, open_runtime(leave_running=True) as client:
        await client.create_workspace("debian:12", name="ws")
        guests.newest.serve = None
        await guests.newest.break_link()
        tasks.start_soon(ask, client)
        await anyio.wait_all_tasks_blocked()
        assert (await client.status_workspace("ws")).command_count == 1
    guests.newest.serve = guests.newest.agent.serve
    async with open_runtime(leave_running=True) as client:
        assert (await client.exec_workspace("ws", command, idempotency_key="k")).exit_code == 0
        assert (await client.exec_workspace("ws", "cat runs")).stdout == "ran\n"


# --- callers that go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "vanished", "goes_on"),
    [
        ({}, True, False),
        ({"idempotency_key": "k"}, True, True),
        ({"idempotency_key": "k"}, False, False),
    ],
)
async def test_what_becomes_of_a_command_when_its_caller_goes(
    runtime: Runtime, options: dict[str, str], vanished: bool, goes_on: bool
) -> None:
    begun = anyio.Event()

    async def emit(event: object) -> None:
        if isinstance(event, ExecOutput):
            begun.set()

    async def ask() -> None:
        params = ExecWorkspace(workspace="ws", command=UNTIL_TOLD, **options)  # type: ignore[arg-type]
        await runtime.exec_workspace(params, Call(emit, vanished=lambda: vanished))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await begun.wait()
            tasks.cancel_scope.cancel()
        (entry,) = (await runtime.logs_workspace(LogsWorkspace(workspace="ws"), Call())).entries
        assert (entry.exit_code, entry.cancelled) == ((None, False) if goes_on else (137, True))
        await runtime.exec_workspace(ExecWorkspace(workspace="ws", command="touch done"), Call())
        ended = await runtime.wait_exec(WaitExec(workspace="ws", exec_id=entry.exec_id), Call())
        assert ended.exit_code == (0 if goes_on else 137)


async def test_a_command_whose_input_is_cut_off_is_killed_though_it_has_a_key(runtime: Runtime) -> None:
    begun = anyio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"half of "
        await anyio.sleep_forever()

    async def emit(event: object) -> None:
        if isinstance(event, ExecOutput):
            begun.set()

    async def ask() -> None:
        params = ExecWorkspace(workspace="ws", command="cat", stdin=True, idempotency_key="k")
        await runtime.exec_workspace(params, Call(emit, source(), vanished=lambda: True))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await begun.wait()
            tasks.cancel_scope.cancel()
    (entry,) = (await runtime.logs_workspace(LogsWorkspace(workspace="ws"), Call())).entries
    assert entry.cancelled


# --- attaching --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_every_cursor_leads_to_exactly_the_rest(client: AsyncPyro) -> None:
    result = await client.exec_workspace("ws", "printf one; sleep 0.05; printf two >&2; sleep 0.05; printf three")
    whole = b"onetwothree"
    for cursor in range(len(whole) + 1):
        heard = [event async for event in client.attach_exec("ws", result.exec_id, cursor=cursor)]
        assert isinstance(heard[0], ExecStarted)
        assert heard[0].cursor == cursor
        assert heard[-1] == result
        pieces = [event for event in heard if isinstance(event, ExecOutput)]
        assert b"".join(piece.data for piece in pieces) == whole[cursor:]
        for piece in pieces:
            assert piece.data == whole[piece.cursor - len(piece.data) : piece.cursor]
    with pytest.raises(InvalidArgument, match="behind the end of the output, 11"):
        await anext(client.attach_exec("ws", result.exec_id, cursor=12))


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_leaving_leaves_the_command_alone(client: AsyncPyro) -> None:
    begun = await client.exec_workspace("ws", UNTIL_TOLD, detach=True)
    with anyio.fail_after(20):
        for _ in range(3):
            async with client.attach_exec("ws", begun.exec_id) as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        break
        await client.exec_workspace("ws", "touch done")
        assert [event async for event in client.attach_exec("ws", begun.exec_id)][-1] == await client.wait_exec(
            "ws", begun.exec_id
        )


@pytest.mark.usefixtures("no_task_left", "small_budget", "workspace_running")
async def test_output_that_was_dropped_is_told(client: AsyncPyro) -> None:
    result = await client.exec_workspace("ws", f"head -c {MUCH} /dev/zero; echo end")
    size = MUCH + len("end\n")
    _, dropped, *pieces, ended = [event async for event in client.attach_exec("ws", result.exec_id)]
    assert isinstance(dropped, OutputDropped)
    assert 0 < dropped.cursor < size
    assert sum(len(piece.data) for piece in pieces if isinstance(piece, ExecOutput)) == size - dropped.cursor
    assert ended == result
    page = await client.read_exec("ws", result.exec_id, max_bytes=1024 * 1024)
    assert (page.cursor, page.begin, page.next_cursor, page.truncated) == (dropped.cursor, dropped.cursor, size, True)
    events = client.follow_logs("ws")
    assert [type(await anext(events)) for _ in range(3)] == [LogStarted, LogDropped, LogOutput]
    await events.aclose()


@pytest.mark.usefixtures("no_task_left", "small_budget", "workspace_running")
async def test_output_that_was_dropped_altogether_is_told(client: AsyncPyro) -> None:
    first = await client.exec_workspace("ws", "echo gone")
    await client.exec_workspace("ws", f"head -c {MUCH} /dev/zero")
    heard = [event async for event in client.attach_exec("ws", first.exec_id)]
    assert heard[1] == OutputDropped(cursor=5)
    page = await client.read_exec("ws", first.exec_id, cursor=2)
    assert (page.cursor, page.next_cursor, page.end, page.truncated, page.ended) == (5, 5, 5, True, True)
    assert (await client.wait_exec("ws", first.exec_id)).stdout_truncated


# --- pages ------------------------------------------------------------------------------------------------------------


async def pages(client: AsyncPyro, exec_id: str, size: int) -> list[ExecPage]:
    """All pages of an ended command's output."""
    found = [await client.read_exec("ws", exec_id, max_bytes=size)]
    while found[-1].next_cursor < found[-1].end:
        found.append(await client.read_exec("ws", exec_id, cursor=found[-1].next_cursor, max_bytes=size))
    return found


@pytest.mark.usefixtures("no_task_left", "workspace_running")
@pytest.mark.parametrize("size", [4, 5, 7, 1000])
async def test_pages_join_to_the_output_and_cut_no_character(client: AsyncPyro, size: int) -> None:
    text = "añ€𝄞" * 20
    result = await client.exec_workspace("ws", f"printf %s {text}; printf {text} >&2")
    found = await pages(client, result.exec_id, size)
    output = [piece for page in found for piece in page.output]
    assert "".join(piece.text for piece in output if piece.stream == "stdout") == text
    assert "".join(piece.text for piece in output if piece.stream == "stderr") == text
    assert [page.cursor for page in found[1:]] == [page.next_cursor for page in found[:-1]]
    assert all(page.ended and not page.truncated for page in found)


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_pages_of_bytes_that_are_no_text_end(client: AsyncPyro) -> None:
    result = await client.exec_workspace("ws", r"printf '\360\360\360\237\377x\360\237'")
    found = await pages(client, result.exec_id, 4)
    assert found[-1].next_cursor == 8
    assert "x" in "".join(piece.text for page in found for piece in page.output)


@pytest.mark.usefixtures("no_task_left", "workspace_running")
async def test_half_a_character_of_a_running_command_waits_for_the_rest(client: AsyncPyro) -> None:
    script = r"printf 'a\303'; until [ -e done ]; do sleep 0.01; done; printf '\261'"
    begun = await client.exec_workspace("ws", script, detach=True)
    with anyio.fail_after(20):
        async with client.attach_exec("ws", begun.exec_id, cursor=0) as events:
            async for event in events:
                if isinstance(event, ExecOutput):
                    break
        page = await client.read_exec("ws", begun.exec_id)
        assert (page.next_cursor, page.ended, [piece.text for piece in page.output]) == (1, False, ["a"])
        await client.exec_workspace("ws", "touch done")
        await client.wait_exec("ws", begun.exec_id)
    page = await client.read_exec("ws", begun.exec_id, cursor=1)
    assert (page.next_cursor, page.ended, [piece.text for piece in page.output]) == (3, True, ["ñ"])
