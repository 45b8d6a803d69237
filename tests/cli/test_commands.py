"""What each command asks for, prints and exits with."""

from __future__ import annotations

import msgspec
import pytest

from pyro_async.calls import Call
from pyro_async.errors import Conflict
from pyro_async.operations import (
    CreateWorkspace,
    Deleted,
    Environment,
    EnvironmentList,
    Event,
    EventList,
    ExecWorkspace,
    ListEvents,
    Progress,
    Pruned,
    Result,
    RunInVm,
    UpdateWorkspace,
    WorkspaceList,
    WorkspaceLogs,
)
from tests.cli.conftest import Cli
from tests.cli.fake_pyro import FakeTransport, a_result, a_workspace, printing


async def test_create_passes_every_option_on(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["create_workspace"] = a_workspace()
    outcome = await cli(
        *("workspace", "create", "debian:12", "--name", "demo", "--label", "team=core", "--label", "url=a=b"),
        *("--vcpu-count", "2", "--mem-mib", "1024"),
    )
    assert outcome.status == 0
    assert transport.asked == [
        (
            "create_workspace",
            CreateWorkspace(
                environment="debian:12",
                name="demo",
                labels={"team": "core", "url": "a=b"},
                vcpu_count=2,
                mem_mib=1024,
            ),
        )
    ]


async def test_create_with_id_only_prints_nothing_but_the_id(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["create_workspace"] = a_workspace()
    assert await cli("workspace", "create", "debian:12", "--id-only") == (0, "0123456789ab\n", "")


async def test_create_reports_each_finished_phase_on_stderr(cli: Cli, transport: FakeTransport) -> None:
    async def create(params: CreateWorkspace, call: Call) -> Result:
        await call.emit(Progress(phase="build", detail="debian:12 is missing", fraction=0.0))
        await call.emit(Progress(phase="build", fraction=1.0))
        await call.emit(Progress(phase="boot\x1b[2J"))
        return a_workspace()

    transport.answers["create_workspace"] = create
    outcome = await cli("workspace", "create", "debian:12")
    built, booted = outcome.stderr.splitlines()
    assert built.startswith("pyro: build (")
    assert booted.startswith("pyro: boot\\x1b[2J (")
    assert (await cli("workspace", "create", "debian:12", "--json")).stderr == ""


async def test_list_prints_an_aligned_table_when_piped(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["list_workspaces"] = WorkspaceList(
        workspaces=[a_workspace(), a_workspace(workspace_id="ffffffffffff", name=None, state="failed")]
    )
    heading, first, second = (await cli("workspace", "list")).stdout.splitlines()
    assert heading.split()[:4] == ["ID", "NAME", "STATE", "ENVIRONMENT"]
    assert first.split()[:4] == ["0123456789ab", "demo", "started", "debian:12"]
    assert second.split()[:3] == ["ffffffffffff", "-", "failed"]
    assert heading.index("STATE") == first.index("started") == second.index("failed")


async def test_list_of_nothing_says_what_to_do_next(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["list_workspaces"] = WorkspaceList(workspaces=[])
    outcome = await cli("workspace", "list")
    assert (outcome.status, outcome.stdout) == (0, "")
    assert "pyro workspace create" in outcome.stderr
    assert (await cli("workspace", "list", "--json")).json() == {"workspaces": []}


async def test_status_shows_a_failure_without_its_escape_sequences(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["status_workspace"] = a_workspace(state="failed", failure="the VM ended\nKernel \x1b]0;evil\x07")
    outcome = await cli("workspace", "status", "demo")
    assert "    the VM ended\n    Kernel \\x1b]0;evil\\x07\n" in outcome.stdout
    assert "ls 'a b' (exit 0)" in outcome.stdout
    assert (await cli("workspace", "status", "--json", "demo")).json()[
        "failure"
    ] == "the VM ended\nKernel \x1b]0;evil\x07"


async def test_update_sends_only_what_changes(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["update_workspace"] = a_workspace()
    await cli(
        "workspace", "update", "demo", "--clear-name", "--label", "a=1", "--clear-label", "b", "--clear-label", "c"
    )
    assert transport.asked[0][1] == UpdateWorkspace(
        workspace="demo", clear_name=True, labels={"a": "1"}, clear_labels=["b", "c"]
    )
    assert (await cli("workspace", "update", "demo")).status == 2


@pytest.mark.parametrize("word", ["stop", "start"])
async def test_stop_and_start_show_the_workspace(cli: Cli, transport: FakeTransport, word: str) -> None:
    transport.answers[f"{word}_workspace"] = a_workspace(state="stopped" if word == "stop" else "started")
    outcome = await cli("workspace", word, "demo", "--json")
    assert (outcome.status, outcome.json()["workspace_id"]) == (0, "0123456789ab")
    assert "0123456789ab" in (await cli("workspace", word, "demo")).stdout


async def test_delete_names_what_it_deleted(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["delete_workspace"] = Deleted(workspace_id="0123456789ab", name="demo")
    assert (await cli("workspace", "delete", "demo")).stdout == "deleted 0123456789ab (demo)\n"


async def test_exec_passes_every_option_and_the_argv_as_it_is(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["exec_workspace"] = printing()
    await cli(
        *("workspace", "exec", "demo", "--cwd", "/tmp", "--env", "A=1=2", "--env", "B=", "--user", "1000:1000"),
        *("--timeout-seconds", "1.5", "--", "git", "log", "--json", "--", "a b", ""),
    )
    assert transport.asked[0][1] == ExecWorkspace(
        workspace="demo",
        command=["git", "log", "--json", "--", "a b", ""],
        cwd="/tmp",
        env={"A": "1=2", "B": ""},
        user="1000:1000",
        timeout_seconds=1.5,
    )


async def test_exec_ends_with_the_status_of_the_command(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["exec_workspace"] = printing(("stdout", b"out"), ("stderr", b"err"), exit_code=7)
    assert await cli("workspace", "exec", "demo", "--", "false") == (7, "out", "err")


@pytest.mark.parametrize(
    ("result", "status", "words"),
    [
        ({"exit_code": 124, "timed_out": True}, 124, "timed out"),
        ({"exit_code": 137, "cause": "oom"}, 137, "out of memory"),
        ({"exit_code": 1, "cause": "enospc"}, 1, "disk is full"),
        ({"exit_code": 137, "cancelled": True}, 137, "cancelled"),
        ({"exit_code": None, "cause": "lost"}, 125, "VM ended"),
    ],
)
async def test_exec_explains_an_unusual_end_on_one_line(
    cli: Cli, transport: FakeTransport, result: dict[str, object], status: int, words: str
) -> None:
    transport.answers["exec_workspace"] = printing(("stdout", b"partial\n"), **result)
    outcome = await cli("workspace", "exec", "demo", "--", "work")
    assert (outcome.status, outcome.stdout) == (status, "partial\n")
    assert words in outcome.stderr
    assert outcome.stderr.count("\n") == 1


async def test_exec_with_json_prints_one_object_and_no_output(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["exec_workspace"] = printing(("stdout", b"hi\n"), exit_code=3, stdout="hi\n")
    outcome = await cli("workspace", "exec", "demo", "--json", "--", "work")
    assert (outcome.status, outcome.stderr, outcome.json()["stdout"]) == (3, "", "hi\n")


async def test_run_passes_every_option_on(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["run_in_vm"] = printing(("stdout", b"42\n"))
    outcome = await cli(
        *("run", "debian:12", "--vcpu-count", "2", "--mem-mib", "256", "--env", "A=b", "--timeout-seconds", "9"),
        *("--", "echo", "42"),
    )
    assert outcome == (0, "42\n", "")
    assert transport.asked[0][1] == RunInVm(
        environment="debian:12", command=["echo", "42"], vcpu_count=2, mem_mib=256, env={"A": "b"}, timeout_seconds=9
    )


async def test_logs_show_commands_with_their_output(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["logs_workspace"] = WorkspaceLogs(
        workspace_id="0123456789ab",
        entries=[
            a_result(command="echo $HOME", stdout="/root\n"),
            a_result(sequence=2, command=["sleep", "9"], exit_code=None, duration_ms=0.0),
        ],
    )
    text = (await cli("workspace", "logs", "demo")).stdout
    assert "$ echo $HOME\n/root\n\n#2" in text
    assert "running" in text


async def test_cancel_says_how_the_command_ended(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["cancel_exec"] = a_result(exit_code=137, cancelled=True)
    assert (await cli("workspace", "cancel", "demo", "e1")).stdout == "e1: exit 137, cancelled\n"


async def test_environments_are_listed_built_inspected_and_pruned(cli: Cli, transport: FakeTransport) -> None:
    built = Environment(name="debian:12", description="Debian", built=True, digest="ab" * 32, size_bytes=300 << 20)
    transport.answers |= {
        "list_environments": EnvironmentList(
            environments=[built, Environment(name="debian:12-base", description="bare", built=False)]
        ),
        "build_environment": built,
        "inspect_environment": built,
        "prune_environments": Pruned(removed=["ab" * 32], bytes_freed=300 << 20),
    }
    assert "debian:12       built  300 MiB  Debian" in (await cli("env", "list")).stdout
    assert (await cli("env", "build", "debian:12", "--force", "--json")).json()["built"] is True
    assert "ab" * 32 in (await cli("env", "inspect", "debian:12")).stdout
    assert (await cli("env", "prune", "--all")).stdout == "removed 1 image, freed 300 MiB\n"
    assert [name for name, _ in transport.asked][1:] == [
        "build_environment",
        "inspect_environment",
        "prune_environments",
    ]


async def test_a_conflict_is_reported_once_on_one_line(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["create_workspace"] = Conflict("the name 'demo' is taken", hint="choose another one")
    assert await cli("workspace", "create", "debian:12", "--name", "demo") == (
        125,
        "",
        "error: the name 'demo' is taken (choose another one)\n",
    )


EVENTS = [
    Event(event_id=1, time=0.0, kind="workspace.created", workspace_id="0123456789ab", detail={"name": "a\x1b"}),
    Event(event_id=2, time=0.0, kind="host.clock_jumped", detail={"seconds": 3600.0, "cause": None}),
]


async def test_events_are_a_line_each(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["list_events"] = EventList(events=EVENTS, cursor=2)
    status, out, _ = await cli("events", "--after", "7", "--limit", "5")
    assert transport.asked == [("list_events", ListEvents(after=7, limit=5))]
    first, second = out.splitlines()
    assert status == 0
    assert first.endswith("workspace.created     0123456789ab name=a\\x1b")
    assert second.endswith("host.clock_jumped     - seconds=3600.0")


async def test_followed_events_come_as_json_lines(cli: Cli, transport: FakeTransport) -> None:
    async def tell(params: ListEvents, call: Call) -> Result:
        for event in EVENTS:
            await call.emit(event)
        return EventList(events=[], cursor=2)

    transport.answers["list_events"] = tell
    status, out, err = await cli("events", "--follow", "--json", "--limit", "2")
    assert transport.asked == [("list_events", ListEvents(limit=2, follow=True))]
    assert (status, err) == (0, "")
    assert [msgspec.json.decode(line, type=Event) for line in out.splitlines()] == EVENTS


async def test_no_events_is_said_on_stderr(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["list_events"] = EventList(events=[], cursor=7)
    assert await cli("events", "--after", "7") == (0, "", "pyro: nothing has happened after 7\n")
