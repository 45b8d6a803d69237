"""Results and failures in words, and output cut to size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_async import errors
from pyro_async.errors import PyroError, SetupRequired, WrongState
from pyro_async.operations import Environment, EnvironmentList, ExecResult, Workspace, WorkspaceList, WorkspaceLogs
from pyro_mcp_server.excerpt import cut, shortened
from pyro_mcp_server.texts import FOR_THE_USER, NEXT_STEPS, describe, failure_of

#: Codes of failures whose own hints are steps that a model can take.
OWN_HINTS = {"conflict", "host_memory_full", "invalid_argument"}


def a_result(**changes: Any) -> ExecResult:
    fields: dict[str, Any] = {
        "workspace_id": "0123456789ab",
        "exec_id": "e1",
        "sequence": 1,
        "command": ["ls", "a b"],
        "cwd": "/workspace",
        "started_at": 0.0,
        "exit_code": 0,
        "duration_ms": 1234.0,
    }
    return ExecResult(**fields | changes)


@given(text=st.text(alphabet="ab\n", max_size=3000), limit=st.integers(min_value=300, max_value=2000))
def test_what_is_cut_fits_and_keeps_head_and_tail(text: str, limit: int) -> None:
    found = cut(text, limit)
    if len(text) <= limit:
        assert found == text
        return
    assert len(found) <= limit
    head, note, tail = found.partition("[... ")
    assert note
    tail = tail.partition(" ...]\n")[2]
    assert text.startswith(head.removesuffix("\n"))
    assert text.endswith(tail)
    assert len(head) > limit // 8
    assert len(tail) > limit // 8


def test_lines_stay_whole() -> None:
    text = "".join(f"line {number}\n" for number in range(10_000))
    kept = cut(text, 2000).splitlines()
    assert [line for line in kept if line not in text.splitlines()] == [
        next(line for line in kept if "left out" in line)
    ]
    left_out = int(next(line for line in kept if "left out" in line).split(", ")[1].split()[0].replace(",", ""))
    assert left_out + len(kept) - 1 == 10_000


def test_one_long_line_is_cut_within() -> None:
    assert cut("x" * 5000, 1000) == f"{'x' * 450}\n[... 4,100 characters, 0 lines left out ...]\n{'x' * 450}"


def test_what_the_runtime_had_cut_stays_marked() -> None:
    result = shortened(a_result(stdout="x" * 10, stdout_truncated=True, stderr="y" * 2000), 1000)
    assert isinstance(result, ExecResult)
    assert (result.stdout, result.stdout_truncated, result.stderr_truncated) == ("x" * 10, True, True)


def test_a_history_shares_the_room() -> None:
    logs = WorkspaceLogs(workspace_id="w", entries=[a_result(stdout="x" * 9000, stderr="y" * 9000) for _ in range(100)])
    result = shortened(logs, 20_000)
    assert isinstance(result, WorkspaceLogs)
    assert sum(len(entry.stdout) + len(entry.stderr) for entry in result.entries) <= 20_000


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "exit code 0 after 1.23 s (exec_id e1)\nno output"),
        ({"stdout": "a\nb\n"}, "exit code 0 after 1.23 s (exec_id e1)\n--- stdout\na\nb"),
        ({"exit_code": 137, "signal": 9}, "exit code 137 after 1.23 s: ended by signal 9 (exec_id e1)\nno output"),
        ({"exit_code": None}, "it still runs (exec_id e1)\nno output"),
    ],
)
def test_a_command_in_words(changes: dict[str, Any], text: str) -> None:
    assert describe(a_result(**changes)) == text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cause": "oom"}, "more mem_mib"),
        ({"cause": "enospc"}, "disk is full"),
        ({"exit_code": None, "cause": "lost"}, "workspace_status"),
        ({"cause": "something"}, "cause: something"),
        ({"timed_out": True, "exit_code": 124}, "timed out and was killed with its children"),
        ({"cancelled": True, "exit_code": 137}, "cancelled and killed with its children"),
        ({"stderr": "x", "stderr_truncated": True}, "send it to a file"),
    ],
)
def test_what_matters_about_a_command_is_said(changes: dict[str, Any], words: str) -> None:
    assert words in describe(a_result(**changes))


def test_workspaces_in_words() -> None:
    one = Workspace(
        workspace_id="0123456789ab",
        name="demo",
        labels={"team": "core"},
        environment="debian:12",
        state="failed",
        failure="killed",
        driver="qemu/tcg",
        vcpu_count=2,
        mem_mib=512,
        created_at=0,
        last_activity_at=0,
        command_count=3,
        last_command=None,
    )
    assert describe(one).splitlines() == [
        "workspace demo (0123456789ab) is failed: debian:12, 2 vCPU, 512 MiB; commands so far: 3",
        "labels: team=core",
        "failure: killed",
    ]
    assert describe(WorkspaceList(workspaces=[one])) == "demo (0123456789ab): failed, debian:12"
    assert "workspace_create" in describe(WorkspaceList(workspaces=[]))


def test_histories_and_environments_in_words() -> None:
    assert "no command" in describe(WorkspaceLogs(workspace_id="w", entries=[]))
    assert describe(WorkspaceLogs(workspace_id="w", entries=[a_result()])).startswith("$ ls 'a b'\nexit code 0")
    environments = [
        Environment(name="a", description="A", built=True),
        Environment(name="b", description="B", built=False),
    ]
    assert describe(EnvironmentList(environments=environments)) == "a: A\nb: B (not built yet)"


def test_a_result_without_words_is_its_json() -> None:
    assert '"name":"a"' in describe(Environment(name="a", description="A", built=True))


def test_a_hint_speaks_to_whoever_can_act() -> None:
    assert failure_of(WrongState("it is stopped", hint="`pyro workspace start`")).hint.startswith("see its state with")
    assert (
        failure_of(SetupRequired("no kernel", hint="`pyro setup`")).hint
        == "tell the user, who can mend this: `pyro setup`"
    )
    assert failure_of(PyroError("odd")).hint.startswith("this is a defect")


def test_every_failure_leads_somewhere() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PyroError)]
    groups = [NEXT_STEPS.keys(), FOR_THE_USER, OWN_HINTS]
    for kind in kinds:
        assert sum(kind.code in group for group in groups) == 1, kind.code
