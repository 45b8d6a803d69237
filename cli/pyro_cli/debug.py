"""``pyro debug``: what the daemon is doing at this moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import example, json_option, optional_workspace_argument
from pyro_cli.output import note, print_json, print_tree

if TYPE_CHECKING:
    from pyro_async.task_tree import TaskNode

__all__ = ["debug"]


@click.group(epilog=example("pyro debug tasks"))
def debug() -> None:
    """Look inside the daemon."""


@debug.command(epilog=example("pyro debug tasks", "pyro debug tasks demo"))
@optional_workspace_argument
@json_option
@click.pass_obj
async def tasks(app: App, workspace: str | None, as_json: bool) -> int:
    """Show the tree of the daemon's living tasks, or the part that belongs to WORKSPACE.

    Each task stands below the one that owns it and ends with it.
    """
    from pyro_async.task_tree import subtree
    from pyro_async.transport import daemon_tasks

    tree: TaskNode | None = await daemon_tasks(app.home)
    if tree is None:
        note(f"no daemon runs for {app.home}; commands start it when they need it")
        return 1
    if workspace is not None:
        async with app.client() as client:
            found = await client.status_workspace(workspace)
        tree = subtree(tree, f"workspace {found.workspace_id}")
        if tree is None:
            note(f"workspace {workspace} is {found.state}: nothing of it runs")
            return 1
    if as_json:
        print_json(tree)
    else:
        print_tree(tree, lambda node: node.name, lambda node: node.children)
    return 0
