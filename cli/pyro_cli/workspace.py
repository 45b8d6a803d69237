"""``pyro workspace``: what creates, describes, changes and ends workspaces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.execs import attach, cancel, command_line, exec_, read, wait
from pyro_cli.logs import logs
from pyro_cli.options import (
    example,
    json_option,
    label_option,
    mem_option,
    vcpu_option,
    workspace_argument,
)
from pyro_cli.output import ago, clock, duration, is_terminal, note, print_fields, print_json, print_table, size
from pyro_cli.phases import show_phases

if TYPE_CHECKING:
    from pyro_async.operations import Resources, Workspace

__all__ = ["workspace"]


@click.group(epilog=example("pyro workspace create debian:12 --name demo", "pyro workspace exec demo -- uname -a"))
def workspace() -> None:
    """Create workspaces and work in them.

    WORKSPACE is always an id or a name.
    """


@workspace.command(epilog=example("pyro workspace create debian:12 --name demo --label team=core"))
@click.argument("environment")
@click.option("--name", metavar="NAME", help="A unique name to use instead of the id.")
@label_option("Attach a label; may be repeated.")
@vcpu_option
@mem_option
@click.option("--ttl-seconds", type=int, metavar="S", help="Delete it after S seconds, 60 or more; never by default.")
@click.option(
    "--idle-stop-seconds",
    type=int,
    metavar="S",
    help="Stop it, keeping its disk, after S seconds without activity, 60 or more; never by default.",
)
@click.option("--id-only", is_flag=True, help="Print only the new workspace's id.")
@json_option
@click.pass_obj
async def create(
    app: App,
    environment: str,
    name: str | None,
    labels: dict[str, str],
    vcpu_count: int,
    mem_mib: int,
    ttl_seconds: int | None,
    idle_stop_seconds: int | None,
    id_only: bool,
    as_json: bool,
) -> None:
    """Create a workspace from ENVIRONMENT and start it.

    Builds the environment first if it is missing.
    """
    with show_phases(as_json=as_json) as phases:
        async with app.client() as client:
            made = await client.create_workspace(
                environment,
                name=name,
                labels=labels,
                vcpu_count=vcpu_count,
                mem_mib=mem_mib,
                ttl_seconds=ttl_seconds,
                idle_stop_seconds=idle_stop_seconds,
                on_progress=phases,
            )
    if as_json:
        print_json(made)
    elif id_only:
        print(made.workspace_id)
    else:
        _print_workspace(made)
        if is_terminal(2):
            note(f"next: pyro workspace exec {made.name or made.workspace_id} -- uname -a")


@workspace.command("list", epilog=example("pyro workspace list"))
@json_option
@click.pass_obj
async def list_(app: App, as_json: bool) -> None:
    """List all workspaces, oldest first."""
    async with app.client() as client:
        found = await client.list_workspaces()
    if as_json:
        print_json(found)
    elif found.workspaces:
        print_table(
            ("ID", "NAME", "STATE", "ENVIRONMENT", "VCPUS", "MEMORY", "COMMANDS", "CREATED"),
            [
                (
                    each.workspace_id,
                    each.name or "-",
                    each.state,
                    each.environment,
                    str(each.vcpu_count),
                    f"{each.mem_mib} MiB",
                    str(each.command_count),
                    ago(each.created_at),
                )
                for each in found.workspaces
            ],
        )
    else:
        note("there are no workspaces; make one with `pyro workspace create debian:12`")


@workspace.command(epilog=example("pyro workspace status demo"))
@workspace_argument
@json_option
@click.pass_obj
async def status(app: App, workspace: str, as_json: bool) -> None:
    """Describe one workspace."""
    async with app.client() as client:
        found = await client.status_workspace(workspace)
    _show(found, as_json)


@workspace.command(epilog=example("pyro workspace update demo --name review --label team=core --clear-label draft"))
@workspace_argument
@click.option("--name", metavar="NAME", help="Give it this name.")
@click.option("--clear-name", is_flag=True, help="Take its name away.")
@label_option("Set a label; may be repeated.")
@click.option("--clear-label", "clear_labels", metavar="KEY", multiple=True, help="Remove a label; may be repeated.")
@json_option
@click.pass_obj
async def update(
    app: App,
    workspace: str,
    name: str | None,
    clear_name: bool,
    labels: dict[str, str],
    clear_labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """Change the name and the labels of a workspace.

    What is not given stays.
    """
    if not (name is not None or clear_name or labels or clear_labels):
        raise click.UsageError("Nothing to change: give --name, --clear-name, --label or --clear-label.")
    async with app.client() as client:
        changed = await client.update_workspace(
            workspace, name=name, clear_name=clear_name, labels=labels, clear_labels=clear_labels
        )
    _show(changed, as_json)


@workspace.command(epilog=example("pyro workspace delete demo"))
@workspace_argument
@json_option
@click.pass_obj
async def delete(app: App, workspace: str, as_json: bool) -> None:
    """Delete a workspace: its VM, its disk and its records."""
    async with app.client() as client:
        deleted = await client.delete_workspace(workspace)
    if as_json:
        print_json(deleted)
    else:
        print(f"deleted {deleted.workspace_id}" + (f" ({deleted.name})" if deleted.name else ""))


@workspace.command(epilog=example("pyro workspace stop demo"))
@workspace_argument
@json_option
@click.pass_obj
async def stop(app: App, workspace: str, as_json: bool) -> None:
    """Shut a workspace's VM down and keep its disk.

    Ends all commands that run in it.
    """
    async with app.client() as client:
        stopped = await client.stop_workspace(workspace)
    _show(stopped, as_json)


@workspace.command(epilog=example("pyro workspace start demo"))
@workspace_argument
@json_option
@click.pass_obj
async def start(app: App, workspace: str, as_json: bool) -> None:
    """Start a stopped or failed workspace with its disk as it was."""
    with show_phases(as_json=as_json) as phases:
        async with app.client() as client:
            started = await client.start_workspace(workspace, on_progress=phases)
    _show(started, as_json)


@workspace.command(epilog=example("pyro workspace reap"))
@json_option
@click.pass_obj
async def reap(app: App, as_json: bool) -> None:
    """Delete the workspaces whose time is up, and wait until they are gone.

    That happens by itself within moments; this is for who wants to see it done.
    """
    async with app.client() as client:
        reaped = await client.reap_expired()
    if as_json:
        print_json(reaped)
    elif reaped.workspace_ids:
        print(f"deleted {' '.join(reaped.workspace_ids)}")
    else:
        note("no workspace has expired")


workspace.add_command(exec_)
workspace.add_command(logs)
for each in (wait, attach, read, cancel):
    workspace.add_command(each)


def _show(found: Workspace, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        _print_workspace(found)


def _print_workspace(found: Workspace) -> None:
    last = found.last_command
    fields = [
        ("id", found.workspace_id),
        ("name", found.name or "-"),
        ("state", found.state),
        ("environment", found.environment),
        ("machine", f"{found.vcpu_count} vCPU, {found.mem_mib} MiB, {found.driver}"),
        ("created", f"{clock(found.created_at)} ({ago(found.created_at)})"),
        ("last activity", f"{clock(found.last_activity_at)} ({ago(found.last_activity_at)})"),
        ("commands", str(found.command_count)),
    ]
    if found.labels:
        fields.insert(2, ("labels", ", ".join(f"{key}={value}" for key, value in found.labels.items())))
    if last is not None:
        how = "running" if last.exit_code is None else f"exit {last.exit_code}"
        fields.append(("last command", f"{command_line(last.command)} ({how})"))
    if found.expires_at is not None:
        fields.append(("expires", f"{clock(found.expires_at)} (in {duration(found.expires_at - time.time())})"))
    if found.idle_stop_seconds is not None:
        fields.append(("idle stop", f"after {duration(found.idle_stop_seconds)} without activity"))
    if found.resources is not None:
        fields += _resource_fields(found.resources)
    if found.failure:
        fields.append(("failure", found.failure))
    print_fields(fields)


def _resource_fields(used: Resources) -> list[tuple[str, str]]:
    guest, vmm = used.guest, used.vmm
    fields = [("disk", f"{size(used.disk_allocated_bytes)} on the host")]
    if guest is not None:
        in_use = guest.mem_total_bytes - guest.mem_available_bytes
        fields = [
            ("uptime", duration(guest.uptime_seconds)),
            ("guest memory", f"{size(in_use)} of {size(guest.mem_total_bytes)} in use"),
            ("guest CPU", f"{duration(guest.cpu_seconds)} busy, {guest.process_count} processes"),
            ("disk", f"{fields[0][1]}, {size(guest.disk_free_bytes)} of {size(guest.disk_total_bytes)} free"),
        ]
    if vmm is not None:
        memory = f"{size(vmm.rss_bytes)} resident"
        if vmm.pss_bytes is not None:
            memory += f" ({size(vmm.pss_bytes)} its own share)"
        fields.append(("VM on host", f"{memory}, {duration(vmm.cpu_seconds)} CPU, pid {vmm.pid}"))
    return fields
