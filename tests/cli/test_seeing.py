"""``top``, ``debug tasks`` and what ``status`` says of resources and lifetimes."""

from __future__ import annotations

import json
import os
import pty
import signal
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from pyro_async.calls import Call
from pyro_async.operations import (
    CreateWorkspace,
    GuestResources,
    Reaped,
    ReapExpired,
    Resources,
    Result,
    StatusWorkspace,
    VmmResources,
    Workspace,
    WorkspaceList,
)
from pyro_async.task_tree import TaskNode
from pyro_cli import top
from tests.cli.conftest import Cli, Spawn
from tests.cli.fake_pyro import FakeTransport, a_workspace


def used(*, at: float = 100.0, cpu_seconds: float = 5.0, pid: int = 42, **changes: Any) -> Resources:
    fields: dict[str, Any] = {
        "measured_at": at,
        "guest": GuestResources(
            uptime_seconds=90.0,
            cpu_seconds=3.0,
            mem_total_bytes=512 << 20,
            mem_available_bytes=400 << 20,
            disk_total_bytes=16 << 30,
            disk_free_bytes=15 << 30,
            process_count=17,
        ),
        "vmm": VmmResources(pid=pid, rss_bytes=300 << 20, pss_bytes=290 << 20, cpu_seconds=cpu_seconds),
        "disk_allocated_bytes": 5 << 20,
        "running_commands": 2,
    }
    return Resources(**fields | changes)


def cpu(earlier: Resources | None, now: Resources) -> str:
    before = [] if earlier is None else [a_workspace(resources=earlier)]
    ((_, _, _, cell, *_),) = top.rows(before, [a_workspace(resources=now)])
    return cell


def test_cpu_is_what_was_spent_between_two_looks() -> None:
    assert cpu(used(), used(at=102.0, cpu_seconds=6.5)) == "75 %"
    assert cpu(used(), used(at=101.0, cpu_seconds=8.0)) == "300 %"
    assert cpu(None, used()) == "-"
    assert cpu(used(), used(at=101.0, pid=43)) == "-"
    assert cpu(used(), used(at=100.0)) == "-"
    assert cpu(used(), used(at=101.0, vmm=None)) == "-"


def test_a_row_tells_memory_disk_commands_and_uptime_where_they_are_known() -> None:
    ((*_, memory, of, disk, commands, uptime),) = top.rows([], [a_workspace(resources=used())])
    assert (memory, of, disk, commands, uptime) == ("300 MiB", "512 MiB", "5.0 MiB", "2", "1 min 30 s")
    ((*_, memory, of, disk, commands, uptime),) = top.rows([], [a_workspace(state="stopped")])
    assert (memory, of, disk, commands, uptime) == ("-", "512 MiB", "-", "-", "-")


@pytest.fixture
def two_workspaces(transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    monkeypatch.setattr(top, "_GLANCE", 0)
    transport.answers["list_workspaces"] = WorkspaceList(
        workspaces=[a_workspace(), a_workspace(workspace_id="ffffffffffff", name="other", state="stopped")]
    )
    looks = iter(range(1000))

    async def status(params: StatusWorkspace, call: Call) -> Result:
        look = next(looks)
        return a_workspace(resources=used(at=100.0 + look, cpu_seconds=5.0 + look / 2))

    transport.answers["status_workspace"] = status
    return transport


async def test_top_prints_one_table_where_nobody_watches(cli: Cli, two_workspaces: FakeTransport) -> None:
    for arguments in ((), ("--once",)):
        heading, first, second = (await cli("top", *arguments)).stdout.splitlines()
        assert heading.split() == ["ID", "NAME", "STATE", "CPU", "MEMORY", "OF", "DISK", "COMMANDS", "UPTIME"]
        assert first.split()[:5] == ["0123456789ab", "demo", "started", "50", "%"]
        assert second.split()[:3] == ["ffffffffffff", "other", "stopped"]
    asked = {params.workspace for _, params in two_workspaces.asked if isinstance(params, StatusWorkspace)}
    assert asked == {"0123456789ab"}  # what does not run is not asked


async def test_top_with_json_prints_the_workspaces(cli: Cli, two_workspaces: FakeTransport) -> None:
    first, second = (await cli("top", "--json")).json()["workspaces"]
    assert first["resources"]["vmm"]["rss_bytes"] == 300 << 20
    assert second["resources"] is None


@pytest.mark.parametrize("leave", [b"q", b"\x03"])
def test_top_on_a_terminal_redraws_until_it_is_left_and_gives_the_terminal_back(spawn: Spawn, leave: bytes) -> None:
    controller, terminal = pty.openpty()
    settings = termios.tcgetattr(terminal)
    with spawn(
        "top", stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, env={"TERM": "xterm"}
    ) as process:
        seen, deadline = b"", time.monotonic() + 20
        while b"q leaves" not in seen and time.monotonic() < deadline:
            seen += os.read(controller, 65536)
        if leave == b"q":
            os.write(controller, leave)
        else:
            process.send_signal(signal.SIGINT)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                seen += os.read(controller, 65536)
            except OSError:
                break
            if b"\x1b[?1049l" in seen:
                break
        assert process.wait(20) == (0 if leave == b"q" else 130)
    assert b"0123456789ab" in seen
    assert b"\x1b[?1049l" in seen
    assert termios.tcgetattr(terminal) == settings
    os.close(controller)
    os.close(terminal)


# --- debug tasks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon_runs(monkeypatch: pytest.MonkeyPatch, transport: FakeTransport) -> None:
    tree = TaskNode(
        name="root",
        children=[
            TaskNode(name="clock"),
            TaskNode(name="workspace 0123456789ab", children=[TaskNode(name="link"), TaskNode(name="exec e1")]),
        ],
    )

    async def daemon_tasks(home: Path) -> TaskNode:
        return tree

    monkeypatch.setattr("pyro_async.transport.daemon_tasks", daemon_tasks)
    transport.answers["status_workspace"] = a_workspace()


@pytest.mark.usefixtures("daemon_runs")
async def test_tasks_are_drawn_as_a_tree(cli: Cli) -> None:
    assert (await cli("debug", "tasks")).stdout.splitlines() == [
        "root",
        "├── clock",
        "└── workspace 0123456789ab",
        "    ├── link",
        "    └── exec e1",
    ]


@pytest.mark.usefixtures("daemon_runs")
async def test_tasks_of_a_workspace_are_the_part_below_it(cli: Cli, transport: FakeTransport) -> None:
    outcome = await cli("debug", "tasks", "demo", "--json")
    assert outcome.json()["name"] == "workspace 0123456789ab"
    assert [child["name"] for child in outcome.json()["children"]] == ["link", "exec e1"]
    transport.answers["status_workspace"] = a_workspace(workspace_id="ffffffffffff", state="stopped")
    outcome = await cli("debug", "tasks", "other")
    assert (outcome.status, outcome.stdout) == (1, "")
    assert "is stopped" in outcome.stderr


async def test_tasks_without_a_daemon_start_none(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYRO_HOME", str(tmp_path))
    outcome = await cli("debug", "tasks")
    assert (outcome.status, outcome.stdout) == (1, "")
    assert "no daemon runs" in outcome.stderr


# --- lifetimes ------------------------------------------------------------------------------------------------------


async def test_create_passes_lifetimes_on(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["create_workspace"] = a_workspace()
    await cli("workspace", "create", "debian:12", "--ttl-seconds", "600", "--idle-stop-seconds", "60")
    assert transport.asked[0][1] == CreateWorkspace(environment="debian:12", ttl_seconds=600, idle_stop_seconds=60)
    outcome = await cli("workspace", "create", "debian:12", "--ttl-seconds", "59")
    assert outcome.status == 2
    assert "ttl_seconds" in outcome.stderr


async def test_status_shows_lifetimes_and_resources(cli: Cli, transport: FakeTransport) -> None:
    found: Workspace = a_workspace(expires_at=time.time() + 3600.5, idle_stop_seconds=600, resources=used())
    transport.answers["status_workspace"] = found
    text = (await cli("workspace", "status", "demo")).stdout
    assert "(in 1 h 0 min)" in text
    assert "after 10 min 0 s without activity" in text
    assert "112 MiB of 512 MiB in use" in text
    assert "300 MiB resident (290 MiB its own share), 5.0 s CPU, pid 42" in text
    transport.answers["status_workspace"] = structs.replace(found, resources=used(guest=None, vmm=None))
    assert "5.0 MiB on the host" in (await cli("workspace", "status", "demo")).stdout
    shown = json.loads((await cli("workspace", "status", "demo", "--json")).stdout)
    assert shown["resources"]["guest"] is None


async def test_reap_names_what_it_deleted(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["reap_expired"] = Reaped(workspace_ids=["a" * 12, "b" * 12])
    assert (await cli("workspace", "reap")).stdout == f"deleted {'a' * 12} {'b' * 12}\n"
    assert transport.asked[0][1] == ReapExpired()
    transport.answers["reap_expired"] = Reaped(workspace_ids=[])
    outcome = await cli("workspace", "reap")
    assert (outcome.stdout, outcome.stderr) == ("", "pyro: no workspace has expired\n")
