"""The clients themselves: what they check, how they close, and the blocking one. What they carry: tests/contract."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from pyro_async import AsyncPyro, Pyro
from pyro_async.calls import Call, checked
from pyro_async.errors import InvalidArgument, LinkLost, PyroError, WorkspaceNotFound
from pyro_async.operations import (
    OPERATIONS,
    CreateWorkspace,
    ExecOutput,
    ExecResult,
    ExecStarted,
    ExecWorkspace,
    Params,
    Result,
)
from pyro_async.runtime.daemon import Daemon
from pyro_async.runtime.runtime import Runtime
from tests.support.memory_guest import MemoryDriver, MemoryImages

# --- parameters -------------------------------------------------------------------------------------------------------


def test_checked_parameters_come_back_equal() -> None:
    for params in (
        CreateWorkspace(environment="debian:12", labels={"k": "v"}),
        ExecWorkspace(workspace="ws", command=["a", "ü"], env={"A": ""}, timeout_seconds=0.5),
        ExecWorkspace(workspace="ws", command="a", stdin=True),
    ):
        assert checked(params) == params


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (CreateWorkspace(environment=""), "environment"),
        (CreateWorkspace(environment="e", name="a b"), "name"),
        (CreateWorkspace(environment="e", labels={"a b": "x"}), "labels"),
        (CreateWorkspace(environment="e", vcpu_count=99), "vcpu_count"),
        (CreateWorkspace(environment="e", name="\udcff"), "UTF-8"),
        (ExecWorkspace(workspace="w", command=[]), "command"),
        (ExecWorkspace(workspace="w", command=object()), ""),  # type: ignore[arg-type]
        (ExecWorkspace(workspace="w", command=["x", Path("y")]), ""),  # type: ignore[list-item]
        (ExecWorkspace(workspace="w", command="x", timeout_seconds=float("nan")), "timeout_seconds"),
        (ExecWorkspace(workspace="w", command="x", user=""), "user"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_a_constraint_is_refused_by_name(params: Params, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        checked(params)
    assert message in str(caught.value)
    assert "$" not in caught.value.message


# --- the async client -------------------------------------------------------------------------------------------------


class Scripted:
    """A transport whose commands print some lines and then wait to be cancelled, or end."""

    def __init__(self, *, ends: bool) -> None:
        self.ends = ends
        self.running = 0
        self.lines = 3

    async def call(self, name: str, params: Params, call: Call) -> Result:
        assert isinstance(params, ExecWorkspace)
        self.running += 1
        try:
            await call.emit(ExecStarted(workspace_id="w", exec_id="e", sequence=1, started_at=0.0))
            for number in range(self.lines):
                await call.emit(ExecOutput(stream="stdout", data=b"%d" % number))
            if not self.ends:
                await anyio.sleep_forever()
            if params.command == "fail":
                raise WorkspaceNotFound("gone")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.running -= 1
        return ExecResult(workspace_id="w", exec_id="e", sequence=1, command=params.command, cwd="/", started_at=0.0)


async def test_a_client_that_is_not_open_says_so() -> None:
    client = AsyncPyro()
    with pytest.raises(PyroError, match="not open"):
        await client.list_workspaces()
    with pytest.raises(PyroError, match="not open"):
        client.stream_exec("ws", "true")


async def test_a_stream_that_is_never_read_starts_nothing() -> None:
    transport = Scripted(ends=True)
    async with AsyncPyro(transport=transport) as client:
        stream = client.stream_exec("ws", "true")
        await anyio.wait_all_tasks_blocked()
        assert transport.running == 0
        await stream.aclose()
        client.stream_exec("ws", "true")


async def test_a_stream_can_be_closed_twice_and_then_is_over() -> None:
    transport = Scripted(ends=False)
    async with AsyncPyro(transport=transport) as client:
        stream = client.stream_exec("ws", "true")
        assert isinstance(await anext(stream), ExecStarted)
        await stream.aclose()
        assert transport.running == 0
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_failure_comes_after_the_events_before_it() -> None:
    async with AsyncPyro(transport=Scripted(ends=True)) as client:
        stream = client.stream_exec("ws", "fail")
        seen = []
        with pytest.raises(WorkspaceNotFound):
            async for event in stream:
                seen.append(event)  # noqa: PERF401 - what came before the error counts
        assert len(seen) == 4
        with pytest.raises(WorkspaceNotFound):
            await anext(stream)


async def test_a_slow_reader_holds_the_command_back() -> None:
    transport = Scripted(ends=True)
    transport.lines = 1000
    async with AsyncPyro(transport=transport) as client, client.stream_exec("ws", "true") as events:
        await anext(events)
        await anyio.wait_all_tasks_blocked()
        assert transport.running == 1
        assert len([event async for event in events]) == 1001
        assert transport.running == 0


async def test_closing_the_client_ends_streams_and_wakes_their_readers() -> None:
    transport = Scripted(ends=False)

    async def read(client: AsyncPyro) -> None:
        with pytest.raises(LinkLost, match="closed"):
            async for _ in client.stream_exec("ws", "true"):
                pass

    async with anyio.create_task_group() as tasks:
        async with AsyncPyro(transport=transport) as client:
            tasks.start_soon(read, client)
            await anyio.wait_all_tasks_blocked()
        assert transport.running == 0


async def test_cancelling_a_plain_loop_ends_the_command_before_it_goes_on() -> None:
    transport = Scripted(ends=False)
    async with AsyncPyro(transport=transport) as client:
        with anyio.move_on_after(0.05):
            async for _ in client.stream_exec("ws", "true"):
                pass
        assert transport.running == 0


async def test_an_error_in_the_block_comes_out_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncPyro(transport=Scripted(ends=False)) as client, client.stream_exec("ws", "true"):
            raise ZeroDivisionError


# --- the blocking client ----------------------------------------------------------------------------------------------


@contextmanager
def served(home: Path) -> Iterator[None]:
    """A daemon over in-memory guests, in a thread."""

    async def serve(task_status: anyio.abc.TaskStatus[anyio.CancelScope]) -> None:
        async with anyio.create_task_group() as machines:
            runtime = Runtime(home, driver=MemoryDriver(machines), images=MemoryImages(home))
            async with runtime, anyio.create_task_group() as tasks:
                await tasks.start(Daemon(runtime).serve)
                task_status.started(tasks.cancel_scope)
            machines.cancel_scope.cancel()

    home.mkdir()
    with start_blocking_portal() as portal:
        future, scope = portal.start_task(serve)
        try:
            yield
        finally:
            portal.call(scope.cancel)
            future.result()


@pytest.fixture
def blocking(tmp_path: Path) -> Iterator[Pyro]:
    with served(tmp_path / "home"), Pyro(tmp_path / "home") as client:
        yield client


def test_the_blocking_client_does_what_the_async_one_does(blocking: Pyro) -> None:
    steps: list[object] = []
    workspace = blocking.create_workspace("debian:12", name="ws", on_progress=steps.append)
    assert steps
    result = blocking.exec_workspace("ws", ["cat"], stdin=b"hello")
    assert (result.exit_code, result.stdout) == (0, "hello")
    assert blocking.logs_workspace("ws").entries == [result]
    with pytest.raises(WorkspaceNotFound):
        blocking.status_workspace("none")
    assert blocking.delete_workspace("ws").workspace_id == workspace.workspace_id


def test_the_blocking_stream_yields_events_and_kills_what_is_left(blocking: Pyro) -> None:
    blocking.create_workspace("debian:12", name="ws")
    kinds = [type(event) for event in blocking.stream_exec("ws", "echo hi")]
    assert kinds == [ExecStarted, ExecOutput, ExecResult]
    with blocking.stream_exec("ws", "echo up; sleep 1000") as events:
        for event in events:
            if isinstance(event, ExecOutput):
                break
    (entry, _) = blocking.logs_workspace("ws", limit=2).entries[::-1]
    assert (entry.stdout, entry.cancelled) == ("up\n", True)


def test_the_blocking_client_serves_several_threads(blocking: Pyro) -> None:
    blocking.create_workspace("debian:12", name="ws")
    outputs: dict[int, str] = {}

    def run(number: int) -> None:
        outputs[number] = blocking.exec_workspace("ws", f"echo {number}").stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: f"{number}\n" for number in range(8)}


def test_a_blocking_client_that_is_not_open_says_so() -> None:
    with pytest.raises(PyroError, match="not open"):
        Pyro().list_workspaces()


def test_a_closed_blocking_client_says_so(tmp_path: Path) -> None:
    with served(tmp_path / "home"):
        with Pyro(tmp_path / "home") as client:
            client.list_workspaces()
        with pytest.raises(PyroError, match="not open"):
            client.list_workspaces()


def test_every_operation_has_its_method() -> None:
    for name in OPERATIONS:
        assert callable(getattr(AsyncPyro, name))
        assert callable(getattr(Pyro, name))
