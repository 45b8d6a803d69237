"""Commands that outlast their callers, on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyro_async.calls import Call
from pyro_async.operations import (
    AttachExec,
    ExecOutput,
    ExecPage,
    ExecStarted,
    ExecWorkspace,
    FollowLogs,
    LogDropped,
    LogEnded,
    LogEvent,
    LogOutput,
    LogsFollowed,
    LogStarted,
    OutputDropped,
    OutputPiece,
    Params,
    ReadExec,
    Result,
    WaitExec,
)
from tests.cli.conftest import Cli
from tests.cli.fake_pyro import STARTED_AT, FakeTransport, a_result


async def test_a_detached_command_prints_its_id_and_succeeds(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["exec_workspace"] = a_result(exit_code=None)
    argv = ("workspace", "exec", "demo", "--detach", "--idempotency-key", "k", "--", "make")
    assert await cli(*argv) == (0, "e1\n", "")
    assert transport.asked == [
        ("exec_workspace", ExecWorkspace(workspace="demo", command=["make"], detach=True, idempotency_key="k"))
    ]
    outcome = await cli(*argv[:3], "--detach", "--json", "--", "make")
    assert (outcome.status, outcome.json()["exec_id"], outcome.json()["exit_code"]) == (0, "e1", None)


async def test_a_detached_command_with_input_is_wrong_usage(cli: Cli, transport: FakeTransport) -> None:
    outcome = await cli("workspace", "exec", "demo", "--detach", "--stdin", "--", "cat")
    assert (outcome.status, transport.asked) == (2, [])
    assert "exclude each other" in outcome.stderr


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"exit_code": 3}, 3, "exit 3"),
        ({"exit_code": 124, "timed_out": True}, 124, "exit 124, timed out"),
        ({"exit_code": None}, 125, "running"),
        ({"exit_code": None, "cause": "lost"}, 125, "lost"),
    ],
)
async def test_waiting_exits_with_the_commands_status(
    cli: Cli, transport: FakeTransport, changes: dict[str, Any], status: int, words: str
) -> None:
    transport.answers["wait_exec"] = a_result(**changes)
    assert await cli("workspace", "wait", "demo", "e1", "--wait-seconds", "2.5") == (status, f"e1: {words}\n", "")
    assert transport.asked == [("wait_exec", WaitExec(workspace="demo", exec_id="e1", wait_seconds=2.5))]


async def test_attaching_shows_the_output_and_exits_with_the_status(cli: Cli, transport: FakeTransport) -> None:
    async def answer(params: Params, call: Call) -> Result:
        started = ExecStarted(workspace_id="0123456789ab", exec_id="e1", sequence=1, started_at=STARTED_AT, cursor=3)
        for event in (
            started,
            OutputDropped(cursor=10),
            ExecOutput(stream="stdout", data=b"out\n", cursor=14),
            ExecOutput(stream="stderr", data=b"err\n", cursor=18),
        ):
            await call.emit(event)
        return a_result(exit_code=7)

    transport.answers["attach_exec"] = answer
    outcome = await cli("workspace", "attach", "demo", "e1", "--cursor", "3")
    assert outcome == (7, "out\n", "pyro: output before cursor 10 is no longer kept\nerr\n")
    assert transport.asked == [("attach_exec", AttachExec(workspace="demo", exec_id="e1", cursor=3))]
    assert (await cli("workspace", "attach", "demo", "e1", "--json")).json()["exit_code"] == 7


async def test_a_page_goes_where_it_was_written_and_says_how_to_go_on(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["read_exec"] = ExecPage(
        workspace_id="0123456789ab",
        exec_id="e1",
        cursor=5,
        next_cursor=13,
        begin=5,
        end=20,
        output=[OutputPiece(stream="stdout", text="out\n"), OutputPiece(stream="stderr", text="err\n")],
        truncated=True,
        ended=True,
    )
    outcome = await cli("workspace", "read", "demo", "e1", "--max-bytes", "8")
    assert outcome == (0, "out\n", "pyro: output before cursor 5 is no longer kept\nerr\npyro: next: --cursor 13\n")
    assert transport.asked == [("read_exec", ReadExec(workspace="demo", exec_id="e1", max_bytes=8))]


async def following(params: Params, call: Call) -> Result:
    events: list[LogEvent] = [
        LogStarted(exec_id="e1", sequence=1, command="make\x1b[2J", started_at=STARTED_AT, cursor="1,1:0"),
        LogOutput(exec_id="e1", stream="stdout", data=b"no newline", cursor="1,1:10"),
        LogStarted(exec_id="e2", sequence=2, command="ls", started_at=STARTED_AT, cursor="2,1:10,2:0"),
        LogOutput(exec_id="e1", stream="stdout", data=b"more\n", cursor="2,1:15,2:0"),
        LogDropped(exec_id="e2", cursor="2,1:15,2:9"),
        LogEnded(exec_id="e1", exit_code=2, timed_out=False, cancelled=False, cause=None, cursor="2,2:9"),
        LogEnded(exec_id="e2", exit_code=None, timed_out=False, cancelled=False, cause="lost", cursor="2"),
    ]
    for event in events:
        await call.emit(event)
    return LogsFollowed(workspace_id="0123456789ab")


async def test_a_followed_log_has_a_heading_wherever_another_command_goes_on(
    cli: Cli, transport: FakeTransport
) -> None:
    transport.answers["follow_logs"] = following
    assert await cli("workspace", "logs", "demo", "--follow", "--limit", "3") == (
        0,
        "==> e1  $ make\\x1b[2J\nno newline\n==> e2  $ ls\n==> e1\nmore\n==> e2  … some output is no longer kept …\n"
        "==> e1  exit 2\n==> e2  lost\n",
        "",
    )
    assert transport.asked == [("follow_logs", FollowLogs(workspace="demo", limit=3))]


async def test_a_followed_log_as_json_is_an_object_a_line(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["follow_logs"] = following
    outcome = await cli("workspace", "logs", "demo", "--follow", "--json", "--cursor", "0")
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["started", "output", "started", "output", "dropped", "ended", "ended"]
    assert lines[-1]["cursor"] == "2"
    assert (await cli("workspace", "logs", "demo", "--cursor", "0")).status == 2
