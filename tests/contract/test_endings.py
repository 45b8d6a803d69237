"""Whatever ends a command ends all of it; looked up in the guest."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import count

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import PyroError
from pyro_async.operations import ExecOutput, ExecStarted
from tests.contract.conftest import Guest
from tests.contract.requirements import requirement
from tests.support.eventually import eventually

_numbers = count(1_000_001)


class Tree:
    """A command whose processes evade: one ignores SIGTERM and SIGHUP, one has double-forked into its own session."""

    def __init__(self) -> None:
        self._mark = str(next(_numbers))
        evader = f'trap "" TERM HUP INT; echo up; exec sleep {self._mark}'
        self.script = (
            "trap '' TERM HUP INT; "
            f"(setsid sh -c '(setsid sh -c \"{evader.replace(chr(34), chr(92) + chr(34))}\" &)' &) ; "
            f"sleep {self._mark} & echo up; wait; sleep {self._mark}"
        )

    async def survivors(self, client: AsyncPyro, workspace: str) -> int:
        """How many of its processes live in the guest."""
        pattern = f"sleep.{self._mark[:-1]}[{self._mark[-1]}]"  # does not match itself
        script = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '.' | grep -o '{pattern}' | wc -l"
        return int((await client.exec_workspace(workspace, script, cwd="/")).stdout)

    async def gone(self, client: AsyncPyro, workspace: str) -> bool:
        return await self.survivors(client, workspace) == 0


@pytest.fixture
def ws(workspace_running: str) -> str:
    return workspace_running


@pytest.fixture
def tree() -> Tree:
    return Tree()


async def under_way(event: object, heard: list[bytes]) -> bool:
    if isinstance(event, ExecOutput):
        heard.append(event.data)
    return b"".join(heard).count(b"up\n") == 2


@requirement("exec-timeout")
async def test_a_timeout_leaves_the_output_and_no_process(client: AsyncPyro, ws: str, tree: Tree) -> None:
    with anyio.fail_after(30):
        result = await client.exec_workspace(ws, tree.script, timeout_seconds=1.5)
    assert (result.exit_code, result.timed_out, result.cancelled) == (124, True, False)
    assert result.stdout == "up\nup\n"
    assert 1400 < result.duration_ms < 10_000
    assert await tree.survivors(client, ws) == 0


@requirement("exec-timeout")
async def test_a_command_that_ends_in_time_has_not_timed_out(client: AsyncPyro, ws: str) -> None:
    result = await client.exec_workspace(ws, "echo hi", timeout_seconds=30)
    assert (result.exit_code, result.timed_out) == (0, False)


@requirement("exec-timeout", "workspace-limits")
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
async def test_an_impossible_timeout_is_refused(client: AsyncPyro, ws: str, seconds: float) -> None:
    with pytest.raises(PyroError, match="timeout_seconds"):
        await client.exec_workspace(ws, "true", timeout_seconds=seconds)


@pytest.mark.both_loops
@requirement("exec-cancel-scope")
async def test_cancelling_the_scope_kills_the_tree_first(client: AsyncPyro, ws: str, tree: Tree) -> None:
    heard: list[bytes] = []
    with anyio.fail_after(30):
        with anyio.CancelScope() as scope:

            async def note(event: object) -> None:
                if await under_way(event, heard):
                    assert await tree.survivors(client, ws) >= 2
                    scope.cancel()

            await client.exec_workspace(ws, tree.script, on_event=note)
        assert scope.cancelled_caught
        assert await tree.survivors(client, ws) == 0
    (entry,) = [e for e in (await client.logs_workspace(ws)).entries if e.command == tree.script]
    assert entry.stdout == "up\nup\n"
    assert (entry.cancelled, entry.exit_code) == (True, 137)


@requirement("exec-leave-stream")
async def test_leaving_a_stream_kills_the_tree(client: AsyncPyro, ws: str, tree: Tree) -> None:
    heard: list[bytes] = []
    with anyio.fail_after(30):
        async with client.stream_exec(ws, tree.script) as events:
            async for event in events:
                if await under_way(event, heard):
                    break
        assert await tree.survivors(client, ws) == 0


@requirement("exec-leave-stream")
async def test_an_error_in_the_reader_kills_the_tree_and_stays_itself(client: AsyncPyro, ws: str, tree: Tree) -> None:
    with anyio.fail_after(30):
        with pytest.raises(ZeroDivisionError):
            async with client.stream_exec(ws, tree.script) as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        raise ZeroDivisionError
        assert await tree.survivors(client, ws) == 0


@requirement("exec-leave-stream")
async def test_giving_up_on_one_event_inside_a_block_goes_on_with_the_command(client: AsyncPyro, ws: str) -> None:
    with anyio.fail_after(30):
        async with client.stream_exec(ws, "echo one; sleep 0.5; echo two") as events:
            output = b""
            while True:
                with anyio.move_on_after(0.05):
                    try:
                        event = await anext(events)
                    except StopAsyncIteration:
                        break
                    if isinstance(event, ExecOutput):
                        output += event.data
    assert output == b"one\ntwo\n"


@requirement("exec-cancel-by-id")
async def test_a_command_is_cancelled_by_id_from_elsewhere(
    guest: Guest, client: AsyncPyro, ws: str, tree: Tree
) -> None:
    exec_id = ""
    heard: list[bytes] = []
    results: list[object] = []

    async def run(task_status: anyio.abc.TaskStatus[str]) -> None:
        nonlocal exec_id
        async with client.stream_exec(ws, tree.script) as events:
            async for event in events:
                if isinstance(event, ExecStarted):
                    exec_id = event.exec_id
                if await under_way(event, heard):
                    heard.clear()
                    task_status.started(exec_id)
                results.append(event)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks, guest.connect() as other:
            exec_id = await tasks.start(run)
            result = await other.cancel_exec(ws, exec_id)
            assert (result.cancelled, result.exit_code, result.signal) == (True, 137, signal.SIGKILL)
        assert results[-1] == result
        assert await tree.survivors(client, ws) == 0
        assert await client.cancel_exec(ws, exec_id) == result


@requirement("exec-cancel-by-id")
async def test_cancelling_an_unknown_command_is_refused(client: AsyncPyro, ws: str) -> None:
    with pytest.raises(PyroError, match="no command"):
        await client.cancel_exec(ws, "0123456789ab")


@requirement("exec-disconnect")
async def test_a_client_that_closes_takes_its_commands_with_it(
    guest: Guest, client: AsyncPyro, ws: str, tree: Tree
) -> None:
    heard: list[bytes] = []
    with anyio.fail_after(30):
        async with guest.connect() as other:
            async for event in other.stream_exec(ws, tree.script):
                if await under_way(event, heard):
                    break
        assert await tree.survivors(client, ws) == 0


@requirement("exec-disconnect")
@pytest.mark.parametrize("flood", [False, True], ids=["quiet", "flooding"])
async def test_a_client_that_is_killed_takes_its_commands_with_it(
    guest: Guest, client: AsyncPyro, ws: str, tree: Tree, flood: bool
) -> None:
    if guest.home is None:
        pytest.skip("called directly: the client is this process")
    script = f"({tree.script}) & sleep 0.3; yes" if flood else tree.script
    program = (
        "import anyio, sys; from pyro_async import AsyncPyro\n"
        "async def main():\n"
        "    async with AsyncPyro(sys.argv[1]) as client:\n"
        "        async def note(event): print('event', flush=True)\n"
        "        await client.exec_workspace(sys.argv[2], sys.argv[3], on_event=note)\n"
        "anyio.run(main)\n"
    )
    command = [sys.executable, "-c", program, str(guest.home), ws, script]
    with anyio.fail_after(30):
        async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            seen = b""
            while seen.count(b"event") < (20 if flood else 2):
                seen += await process.stdout.receive()
            process.kill()
        await eventually(lambda: tree.gone(client, ws))
        assert (await client.exec_workspace(ws, "echo on")).stdout == "on\n"


@requirement("exec-background")
async def test_what_a_command_leaves_behind_runs_on(client: AsyncPyro, ws: str, tree: Tree) -> None:
    mark = tree.script.split()[-1]
    with anyio.fail_after(20):
        pid = (await client.exec_workspace(ws, f"sleep {mark} & echo $!")).stdout.strip()
        assert await tree.survivors(client, ws) == 1
        await client.exec_workspace(ws, "true")
        assert await tree.survivors(client, ws) == 1
        await client.exec_workspace(ws, f"kill {pid}")
        await eventually(lambda: tree.gone(client, ws))
