"""The tools, called by the official client over streams in memory."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from mcp import Client, MCPError
from mcp.client._memory import InMemoryTransport

from pyro_async import AsyncPyro
from pyro_async.calls import Call
from pyro_async.errors import DaemonUnavailable, LinkLost, PyroError, SetupRequired
from pyro_async.operations import EnvironmentList, ExecResult, Params, Result
from pyro_mcp_server.server import make_server
from tests.mcp.conftest import Connect, done, text_of
from tests.support.memory_guest import MemoryDriver

PATIENCE = 20

pytestmark = pytest.mark.usefixtures("no_task_left")


async def until(condition: object) -> None:
    assert callable(condition)
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing announces the end of a process that is no child
            await anyio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what tools do ----------------------------------------------------------------------------------------------------


async def test_a_workspace_lives_from_create_to_delete(client: Client) -> None:
    made = await done(client, "workspace_create", environment="debian:12", name="demo", labels={"team": "core"})
    assert (made["name"], made["state"], made["labels"]) == ("demo", "started", {"team": "core"})
    assert (await done(client, "workspace_status", workspace="demo"))["workspace_id"] == made["workspace_id"]
    renamed = await done(client, "workspace_update", workspace="demo", name="review", clear_labels=["team"])
    assert (renamed["name"], renamed["labels"]) == ("review", {})
    assert (await done(client, "workspace_stop", workspace="review"))["state"] == "stopped"
    assert (await done(client, "workspace_start", workspace="review"))["state"] == "started"
    assert [each["name"] for each in (await done(client, "workspace_list"))["workspaces"]] == ["review"]
    assert (await done(client, "workspace_delete", workspace="review"))["workspace_id"] == made["workspace_id"]
    assert await done(client, "workspace_list") == {"workspaces": []}


async def test_a_command_returns_exit_code_and_both_outputs(client: Client, workspace: str) -> None:
    result = await client.call_tool(
        "workspace_exec", {"workspace": workspace, "command": "echo out; echo err >&2; exit 3"}
    )
    assert not result.is_error
    found = result.structured_content
    assert (found["exit_code"], found["stdout"], found["stderr"]) == (3, "out\n", "err\n")
    first, *rest = text_of(result).splitlines()
    assert first.startswith("exit code 3 after ")
    assert rest == ["--- stdout", "out", "--- stderr", "err"]


async def test_standard_input_is_text(client: Client, workspace: str) -> None:
    done_with = await done(client, "workspace_exec", workspace=workspace, command=["cat"], stdin="süß\n")
    assert done_with["stdout"] == "süß\n"
    without = await done(client, "workspace_exec", workspace=workspace, command=["cat"])
    assert without["stdout"] == ""


async def test_ten_megabytes_of_arguments_arrive(client: Client, workspace: str) -> None:
    arguments = {"workspace": workspace, "command": ["wc", "-c"], "stdin": "x" * 10_000_000}
    assert (await done(client, "workspace_exec", **arguments))["stdout"].strip() == "10000000"


async def test_a_timeout_is_a_result_with_what_was_printed(client: Client, workspace: str) -> None:
    result = await client.call_tool(
        "workspace_exec",
        {"workspace": workspace, "command": "echo begun; sleep 60", "timeout_seconds": 0.3},
    )
    found = result.structured_content
    assert (found["exit_code"], found["timed_out"], found["stdout"]) == (124, True, "begun\n")
    assert "timed out and was killed with its children" in text_of(result)


async def test_long_output_is_cut_at_lines_in_text_and_structure(client: Client, workspace: str) -> None:
    arguments = {"workspace": workspace, "command": "seq 1 100000", "max_output_chars": 5000}
    result = await client.call_tool("workspace_exec", arguments)
    stdout = result.structured_content["stdout"]
    head, note, tail = stdout.partition("[... ")
    assert head.startswith("1\n2\n")
    assert head.endswith("\n")
    assert tail.endswith("\n100000\n")
    assert note
    assert len(stdout) <= 5000
    assert result.structured_content["stdout_truncated"]
    assert stdout.removesuffix("\n") in text_of(result)
    assert "send it to a file" in text_of(result)


async def test_logs_of_many_commands_stay_within_the_budget(client: Client, workspace: str) -> None:
    for _ in range(5):
        await done(client, "workspace_exec", workspace=workspace, command="seq 1 3000")
    logs = await client.call_tool("workspace_logs", {"workspace": workspace, "max_output_chars": 5000})
    assert len(logs.structured_content["entries"]) == 5
    assert sum(len(entry["stdout"]) for entry in logs.structured_content["entries"]) <= 5000
    assert text_of(logs).count("$ seq 1 3000") == 5


async def test_one_command_runs_in_a_machine_of_its_own(client: Client) -> None:
    assert (await done(client, "vm_run", environment="debian:12", command="echo ran"))["stdout"] == "ran\n"
    assert await done(client, "workspace_list") == {"workspaces": []}


async def test_environments_are_listed(client: Client) -> None:
    assert [each["name"] for each in (await done(client, "env_list"))["environments"]] == ["debian:12"]


async def test_fifty_commands_run_at_once(client: Client, workspace: str) -> None:
    found: dict[int, str] = {}

    async def run(number: int) -> None:
        arguments = {"workspace": workspace, "command": ["cat"], "stdin": str(number)}
        found[number] = (await done(client, "workspace_exec", **arguments))["stdout"]

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(run, number)
    assert found == {number: str(number) for number in range(50)}


# --- while it runs ----------------------------------------------------------------------------------------------------


async def test_output_arrives_as_progress_while_the_command_runs(
    client: Client, workspace: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    told: list[tuple[float, str]] = []
    seen = anyio.Event()

    async def take(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message or ""))
        if "begun" in (message or ""):
            seen.set()

    command = f"echo begun; read word < {shlex.quote(str(gate))}; echo $word"
    result = None

    async def run() -> None:
        nonlocal result
        result = await client.call_tool(
            "workspace_exec",
            {"workspace": workspace, "command": command},
            progress_callback=take,
        )

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await seen.wait()
            assert result is None
            await anyio.Path(gate).write_text("ended\n")
    assert result is not None
    assert result.structured_content["stdout"] == "begun\nended\n"
    values = [value for value, _ in told]
    assert values == sorted(set(values))


async def test_making_a_workspace_tells_its_steps(client: Client) -> None:
    told: list[str] = []

    async def take(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    await client.call_tool("workspace_create", {"environment": "debian:12"}, progress_callback=take)
    await checkpoint()
    assert told


async def test_cancelling_the_request_kills_the_whole_tree(client: Client, workspace: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"setsid sleep 1000 & echo $$ $! > {shlex.quote(str(pids))}.new; mv {pids}.new {pids}; wait"
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "workspace_exec", {"workspace": workspace, "command": command})
            await until(pids.exists)
            running = [int(pid) for pid in pids.read_text().split()]
            assert all(map(alive, running))
            tasks.cancel_scope.cancel()
        await until(lambda: not any(map(alive, running)))
        after = await done(client, "workspace_logs", workspace=workspace)
    assert after["entries"][-1]["cancelled"]


async def test_another_call_cancels_a_command_by_its_id(client: Client, workspace: str) -> None:
    result = None

    async def run() -> None:
        nonlocal result
        arguments = {"workspace": workspace, "command": ["sleep", "1000"]}
        result = await client.call_tool("workspace_exec", arguments, progress_callback=take)

    started: list[str] = []
    begun = anyio.Event()

    async def take(progress: float, total: float | None, message: str | None) -> None:
        started.append((message or "").split()[-1])
        begun.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await begun.wait()
            killed = await done(client, "exec_cancel", workspace=workspace, exec_id=started[0])
    assert killed["cancelled"]
    assert result is not None
    assert "cancelled and killed with its children" in text_of(result)


async def test_a_client_that_leaves_in_mid_call_leaves_nothing_running(connect: Connect, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    server = make_server(connect, "workspace-full")

    async def run(client: Client) -> None:
        command = f"echo $$ > {pids}.new; mv {pids}.new {pids}; sleep 1000"
        with pytest.raises(MCPError, match="Connection closed"):
            await client.call_tool("workspace_exec", {"workspace": "demo", "command": command})

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, Client(InMemoryTransport(server), mode="legacy") as client:
            await done(client, "workspace_create", environment="debian:12", name="demo")
            tasks.start_soon(run, client)
            await until(pids.exists)
        await until(lambda: not alive(int(pids.read_text())))
    async with connect() as pyro:
        (entry,) = (await pyro.logs_workspace("demo")).entries
    assert entry.cancelled


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "words"),
    [
        ("workspace_status", {"workspace": "nope"}, "workspace_not_found", "call workspace_list"),
        ("workspace_status", {}, "invalid_argument", "workspace_status requires workspace"),
        ("workspace_status", {"workspace": 5}, "invalid_argument", "workspace: "),
        ("workspace_status", {"workspace": "a", "id": "b"}, "invalid_argument", "`id`"),
        ("workspace_create", {"environment": "debian:12", "name": "../x"}, "invalid_argument", "name: "),
        ("workspace_create", {"environment": "debian:12", "vcpu_count": 2**80}, "invalid_argument", "requires"),
        ("workspace_exec", {"workspace": "demo", "command": []}, "invalid_argument", "command: "),
        ("workspace_exec", {"workspace": "demo", "command": "true", "cwd": "/nope"}, "invalid_argument", "/nope"),
        ("exec_cancel", {"workspace": "demo", "exec_id": "nope"}, "exec_not_found", "call workspace_logs"),
    ],
)
@pytest.mark.usefixtures("workspace")
async def test_an_error_says_what_to_do_next(
    client: Client, tool: str, arguments: dict[str, object], code: str, words: str
) -> None:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert result.structured_content["code"] == code
    assert result.structured_content.keys() == {"code", "message", "hint"}
    assert text_of(result).startswith(f"{code}: ")
    assert words in text_of(result)
    await client.session.validate_tool_result(tool, result)  # as strict clients do with errors too


async def test_a_workspace_that_died_is_an_error_that_leads_on(
    client: Client, workspace: str, guests: MemoryDriver
) -> None:
    await guests.newest.die()
    with anyio.fail_after(PATIENCE):
        while (await done(client, "workspace_status", workspace=workspace))["state"] != "failed":
            await checkpoint()
    result = await client.call_tool("workspace_exec", {"workspace": workspace, "command": "true"})
    assert result.is_error
    assert "workspace_start" in text_of(result)


async def test_an_unknown_tool_names_those_there_are(client: Client) -> None:
    with pytest.raises(MCPError, match=r"Unknown tool: rm; .* workspace_create, "):
        await client.call_tool("rm", {})


class Scripted:
    """A transport that answers each call with the next of its answers."""

    def __init__(self, *answers: Result | Exception) -> None:
        self.answers = list(answers)

    async def call(self, name: str, params: Params, call: Call) -> Result:
        await checkpoint()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Opened:
    """Makes clients of scripted transports, and counts them."""

    def __init__(self, *scripts: Scripted | PyroError) -> None:
        self.scripts = list(scripts)
        self.open = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[AsyncPyro]:
        await checkpoint()
        script = self.scripts.pop(0)
        if isinstance(script, PyroError):
            raise script
        async with AsyncPyro("/nowhere", transport=script) as client:
            self.open += 1
            yield client
        self.open -= 1


NO_ENVIRONMENTS = EnvironmentList(environments=[])


async def test_listing_tools_opens_no_client() -> None:
    opened = Opened()
    async with Client(InMemoryTransport(make_server(opened, "workspace-full"))) as client:
        assert len((await client.list_tools()).tools) > 10


async def test_a_hundred_first_calls_open_one_client() -> None:
    opened = Opened(Scripted(*[NO_ENVIRONMENTS] * 100))
    async with Client(InMemoryTransport(make_server(opened, "workspace-full"))) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(done, client, "env_list")
        assert opened.open == 1
    assert (opened.open, opened.scripts) == (0, [])


async def test_a_client_that_cannot_be_opened_is_tried_again_by_the_next_call() -> None:
    opened = Opened(SetupRequired("no kernel", hint="run `pyro setup`"), Scripted(NO_ENVIRONMENTS))
    async with Client(InMemoryTransport(make_server(opened, "workspace-full"))) as client:
        result = await client.call_tool("env_list", {})
        assert result.is_error
        assert result.structured_content["hint"] == "tell the user, who can mend this: run `pyro setup`"
        await done(client, "env_list")


async def test_a_restarted_daemon_is_met_with_a_new_client() -> None:
    ran = ExecResult(workspace_id="w", exec_id="e", sequence=1, command="true", cwd="/", started_at=0, exit_code=0)
    opened = Opened(
        Scripted(LinkLost("the other end closed the connection")),
        Scripted(NO_ENVIRONMENTS, LinkLost("the other end closed the connection")),
        Scripted(ran),
    )
    async with Client(InMemoryTransport(make_server(opened, "workspace-full"))) as client:
        await done(client, "env_list")  # may be repeated, so it is
        lost = await client.call_tool("workspace_exec", {"workspace": "w", "command": "true"})
        assert lost.structured_content["code"] == "link_lost"  # must not be repeated
        assert "workspace_logs" in text_of(lost)
        assert (await done(client, "workspace_exec", workspace="w", command="true"))["exit_code"] == 0
        await until(lambda: opened.open == 1)


async def test_a_defect_is_an_error_result_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    opened = Opened(Scripted(RuntimeError("oops"), NO_ENVIRONMENTS))
    async with Client(InMemoryTransport(make_server(opened, "workspace-full"))) as client:
        result = await client.call_tool("env_list", {})
        assert result.structured_content["code"] == "internal_error"
        assert "tell the user" in text_of(result)
        await done(client, "env_list")
    assert "env_list failed unexpectedly" in caplog.text


async def test_a_host_failure_is_for_the_user() -> None:
    opened = Opened(Scripted(DaemonUnavailable("the daemon does not answer")))
    async with Client(InMemoryTransport(make_server(opened, "workspace-full"))) as client:
        result = await client.call_tool("env_list", {})
    assert result.structured_content["hint"] == "tell the user, who can mend this"
