from __future__ import annotations

import re

import anyio
import pytest
from msgspec import structs

from pyro_async import AsyncPyro
from pyro_async.errors import (
    Conflict,
    EnvironmentNotFound,
    InvalidArgument,
    PyroError,
    WorkspaceNotFound,
    WrongState,
)
from pyro_async.operations import ExecOutput, Progress
from tests.contract.conftest import Guest
from tests.contract.requirements import requirement


@pytest.mark.both_loops
@requirement("workspace-name", "workspace-labels", "workspace-list", "progress")
async def test_a_workspace_is_what_was_asked_for(guest: Guest, client: AsyncPyro) -> None:
    steps: list[Progress] = []
    workspace = await client.create_workspace(
        guest.environment, name="My-1.ws_", labels={"k": "välue"}, vcpu_count=2, mem_mib=300, on_progress=steps.append
    )
    try:
        assert re.fullmatch("[0-9a-f]{12}", workspace.workspace_id)
        assert (workspace.name, workspace.labels, workspace.state) == ("My-1.ws_", {"k": "välue"}, "started")
        assert (workspace.vcpu_count, workspace.mem_mib) == (2, 300)
        assert (workspace.environment, workspace.workspace_path) == (guest.environment, "/workspace")
        assert (workspace.command_count, workspace.last_command, workspace.failure) == (0, None, None)
        for reference in ("My-1.ws_", workspace.workspace_id):
            status = await client.status_workspace(reference)
            assert structs.replace(status, resources=None) == workspace
        assert workspace in (await client.list_workspaces()).workspaces
        assert "boot" in {step.phase for step in steps}
    finally:
        await client.delete_workspace(workspace.workspace_id)


@requirement("workspace-name")
@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", "a" * 65, "a\0"])
async def test_a_name_outside_the_rules_is_refused(guest: Guest, client: AsyncPyro, name: str) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        await client.create_workspace(guest.environment, name=name)


@requirement("workspace-name")
async def test_a_name_is_unique(guest: Guest, client: AsyncPyro, workspace_running: str) -> None:
    with pytest.raises(Conflict, match="shared"):
        await client.create_workspace(guest.environment, name="shared")
    with pytest.raises(Conflict):
        await client.create_workspace(guest.environment, name=workspace_running)
    assert (await client.update_workspace(workspace_running, name="shared")).name == "shared"


@requirement("workspace-name", "workspace-labels")
async def test_name_and_labels_are_changed_one_by_one(client: AsyncPyro, workspace_running: str) -> None:
    ws = workspace_running
    updated = await client.update_workspace(ws, labels={"a": "1", "b": "2"})
    assert (updated.name, updated.labels) == ("shared", {"a": "1", "b": "2"})
    updated = await client.update_workspace(ws, labels={"b": "3", "c": ""}, clear_labels=["a", "none"])
    assert updated.labels == {"b": "3", "c": ""}
    assert (await client.update_workspace(ws, clear_name=True)).name is None
    assert (await client.update_workspace(ws, name="shared", clear_labels=["b", "c"])).labels == {}
    with pytest.raises(InvalidArgument, match="given and cleared"):
        await client.update_workspace(ws, name="other", clear_name=True)
    for labels in ({"bad key": "x"}, {"key": "x" * 257}, {"key": 5}, {"key": "\udcff"}):
        with pytest.raises(InvalidArgument):
            await client.update_workspace(ws, labels=labels)  # type: ignore[arg-type]


@requirement("workspace-limits")
@pytest.mark.parametrize(
    ("field", "value"),
    [("vcpu_count", 0), ("vcpu_count", 9), ("mem_mib", 127), ("mem_mib", 32769), ("mem_mib", 1.5), ("vcpu_count", "2")],
)
async def test_a_value_out_of_bounds_is_refused_by_name(
    guest: Guest, client: AsyncPyro, field: str, value: object
) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await client.create_workspace(guest.environment, **{field: value})  # type: ignore[arg-type]


@requirement("workspace-not-found")
async def test_what_does_not_exist_is_told_as_such(client: AsyncPyro) -> None:
    for operation in (
        client.status_workspace,
        client.delete_workspace,
        client.stop_workspace,
        client.start_workspace,
        client.update_workspace,
        client.logs_workspace,
    ):
        with pytest.raises(WorkspaceNotFound, match="no-such") as caught:
            await operation("no-such")
        assert "workspace list" in caught.value.hint
    with pytest.raises(WorkspaceNotFound):
        await client.exec_workspace("no-such", "true")


@requirement("workspace-environment")
async def test_an_unknown_environment_is_refused(client: AsyncPyro) -> None:
    before = await client.list_workspaces()
    with pytest.raises(EnvironmentNotFound, match="no-such"):
        await client.create_workspace("no-such")
    with pytest.raises(EnvironmentNotFound, match="no-such"):
        await client.run_in_vm("no-such", "true")
    assert await client.list_workspaces() == before


@requirement("workspace-environment")
async def test_environments_can_be_listed_and_inspected(guest: Guest, client: AsyncPyro) -> None:
    environments = {entry.name: entry for entry in (await client.list_environments()).environments}
    assert environments[guest.environment] == await client.inspect_environment(guest.environment)
    assert (await client.build_environment(guest.environment)).built


@requirement("workspace-stop-start")
async def test_stopping_and_starting_keeps_files_and_ends_processes(client: AsyncPyro, workspace_created: str) -> None:
    ws = workspace_created
    await client.exec_workspace(ws, "mkdir d; echo kept >d/file; chmod 640 d/file; ln -s file d/link; sleep 2000 &")
    stopped = await client.stop_workspace(ws)
    assert (stopped.state, stopped.failure) == ("stopped", None)
    assert (await client.stop_workspace(ws)).state == "stopped"
    with pytest.raises(WrongState, match="start it first"):
        await client.exec_workspace(ws, "true")
    assert (await client.start_workspace(ws)).state == "started"
    assert (await client.start_workspace(ws)).state == "started"
    result = await client.exec_workspace(ws, "cat d/link; stat -c %a d/file")
    assert result.stdout == "kept\n640\n"
    count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' . | grep -c 'sleep.200[0]'"
    alive = await client.exec_workspace(ws, count)
    assert alive.stdout == "0\n"
    assert result.sequence == 2


@requirement("workspace-list", "workspace-delete")
async def test_workspaces_are_listed_oldest_first_until_deleted(guest: Guest, client: AsyncPyro) -> None:
    before = [workspace.workspace_id for workspace in (await client.list_workspaces()).workspaces]
    made = []
    async with anyio.create_task_group() as tasks:
        for name in ("one", "two"):
            tasks.start_soon(client.create_workspace, guest.environment)
            await anyio.sleep(0.01)
            made.append(name)
    listed = (await client.list_workspaces()).workspaces
    assert [workspace.created_at for workspace in listed] == sorted(workspace.created_at for workspace in listed)
    for workspace in listed:
        if workspace.workspace_id not in before:
            deleted = await client.delete_workspace(workspace.workspace_id)
            assert deleted.workspace_id == workspace.workspace_id
    assert [workspace.workspace_id for workspace in (await client.list_workspaces()).workspaces] == before


@requirement("workspace-delete")
async def test_a_deleted_name_is_free_again(guest: Guest, client: AsyncPyro) -> None:
    first = await client.create_workspace(guest.environment, name="again")
    await client.exec_workspace("again", "touch leftover")
    assert (await client.delete_workspace("again")).name == "again"
    with pytest.raises(WorkspaceNotFound):
        await client.status_workspace(first.workspace_id)
    second = await client.create_workspace(guest.environment, name="again")
    try:
        assert second.workspace_id != first.workspace_id
        assert (await client.exec_workspace("again", "ls")).stdout == ""
    finally:
        await client.delete_workspace("again")


@requirement("run-in-vm", "progress")
async def test_run_in_vm_runs_once_and_leaves_nothing(guest: Guest, client: AsyncPyro) -> None:
    before = await client.list_workspaces()
    seen: list[object] = []
    result = await client.run_in_vm(
        guest.environment, "cat; echo $X >&2; exit 3", stdin=b"in", env={"X": "x"}, on_event=seen.append
    )
    assert (result.exit_code, result.stdout, result.stderr, result.sequence) == (3, "in", "x\n", 1)
    assert any(isinstance(event, Progress) for event in seen)
    assert b"".join(event.data for event in seen if isinstance(event, ExecOutput)) == b"inx\n"
    assert await client.list_workspaces() == before


@requirement("run-in-vm")
@pytest.mark.parametrize("how", ["timeout", "cancelled", "refused"])
async def test_run_in_vm_leaves_nothing_whatever_happens(guest: Guest, client: AsyncPyro, how: str) -> None:
    before = await client.list_workspaces()
    if how == "timeout":
        result = await client.run_in_vm(guest.environment, "echo part; sleep 1000", timeout_seconds=0.5)
        assert (result.exit_code, result.timed_out, result.stdout) == (124, True, "part\n")
    elif how == "cancelled":
        with anyio.CancelScope() as scope:

            def cancel(event: object) -> None:
                if isinstance(event, ExecOutput):
                    scope.cancel()

            await client.run_in_vm(guest.environment, "echo part; sleep 1000", on_event=cancel)
        assert scope.cancelled_caught
    else:
        with pytest.raises(PyroError, match="NUL"):
            await client.run_in_vm(guest.environment, ["echo", "\0"])
    assert await client.list_workspaces() == before
