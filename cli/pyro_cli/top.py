"""``pyro top``: what the workspaces use, as it changes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import example, json_option
from pyro_cli.output import duration, is_terminal, print_json, print_table, size, table

if TYPE_CHECKING:
    from pyro_async.client import AsyncPyro
    from pyro_async.operations import Workspace

__all__ = ["rows", "top"]

#: Seconds between two looks.
_REFRESH: Final = 1.0
#: A single picture needs two looks too, because CPU use is a difference.
_GLANCE: Final = 0.5
_HEADINGS: Final = ("ID", "NAME", "STATE", "CPU", "MEMORY", "OF", "DISK", "COMMANDS", "UPTIME")


@click.command(epilog=example("pyro top", "pyro top --once"))
@click.option("--once", is_flag=True, help="Print one table and end; so it is where stdout is no terminal.")
@json_option
@click.pass_obj
async def top(app: App, once: bool, as_json: bool) -> None:
    """Show what each workspace uses of the host, once a second. Leave with q or Ctrl-C.

    CPU counts one fully used processor as 100 %. Memory is what the VM occupies on the host, of what its guest has.
    """
    async with app.client() as client:
        if as_json:
            print_json({"workspaces": await _look(client)})
        elif once or not is_terminal(1):
            earlier = await _look(client)
            await anyio.sleep(_GLANCE)
            print_table(_HEADINGS, rows(earlier, await _look(client)))
        else:
            await _watch(client)


async def _look(client: AsyncPyro) -> list[Workspace]:
    """All workspaces with what they use; those that go away meanwhile are left out."""
    from pyro_async.errors import WorkspaceNotFound
    from pyro_async.groups import plain_task_group

    found = (await client.list_workspaces()).workspaces
    looks: dict[str, Workspace] = {}

    async def look(workspace: Workspace) -> None:
        try:
            looks[workspace.workspace_id] = (
                await client.status_workspace(workspace.workspace_id) if workspace.state == "started" else workspace
            )
        except WorkspaceNotFound:
            pass

    async with plain_task_group() as tasks:
        for workspace in found:
            tasks.start_soon(look, workspace, name="look")
    return [looks[workspace.workspace_id] for workspace in found if workspace.workspace_id in looks]


def rows(earlier: Sequence[Workspace], now: Sequence[Workspace]) -> list[tuple[str, ...]]:
    """The table of what changed between two looks and of what is."""
    before = {workspace.workspace_id: workspace for workspace in earlier}
    return [_row(before.get(workspace.workspace_id), workspace) for workspace in now]


def _row(earlier: Workspace | None, now: Workspace) -> tuple[str, ...]:
    used = now.resources
    vmm, guest = (used.vmm, used.guest) if used else (None, None)
    return (
        now.workspace_id,
        now.name or "-",
        now.state,
        _cpu(earlier, now),
        size(vmm.rss_bytes) if vmm else "-",
        f"{now.mem_mib} MiB",
        size(used.disk_allocated_bytes) if used else "-",
        str(used.running_commands) if used else "-",
        duration(guest.uptime_seconds) if guest else "-",
    )


def _cpu(earlier: Workspace | None, now: Workspace) -> str:
    first, second = earlier and earlier.resources, now.resources
    if not (first and second and first.vmm and second.vmm) or first.vmm.pid != second.vmm.pid:
        return "-"
    elapsed = second.measured_at - first.measured_at
    spent = second.vmm.cpu_seconds - first.vmm.cpu_seconds
    return f"{max(0.0, spent / elapsed * 100):.0f} %" if elapsed > 0 else "-"


async def _watch(client: AsyncPyro) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    looks: list[Workspace] = []
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        async with _until_q():
            while True:
                earlier, looks = looks, await _look(client)
                started = sum(workspace.state == "started" for workspace in looks)
                title = f"{time.strftime('%H:%M:%S')}  {len(looks)} workspaces, {started} started; q leaves"
                live.update(Group(Text(title, style="dim"), table(_HEADINGS, rows(earlier, looks))), refresh=True)
                await anyio.sleep(_REFRESH)


@asynccontextmanager
async def _until_q() -> AsyncIterator[None]:
    """Runs its block until somebody presses q, if there is a keyboard."""
    import os
    import termios
    import tty

    from pyro_async.groups import plain_task_group

    if not is_terminal(0):
        yield
        return
    settings = termios.tcgetattr(0)

    async def watch_keys(scope: anyio.CancelScope) -> None:
        while True:
            await anyio.wait_readable(0)
            if os.read(0, 64) in (b"q", b"Q", b""):
                scope.cancel()

    try:
        tty.setcbreak(0)
        async with plain_task_group() as tasks:
            tasks.start_soon(watch_keys, tasks.cancel_scope, name="keys")
            yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, settings)
