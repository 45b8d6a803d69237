"""``pyro workspace exec``, ``logs`` and ``cancel``: commands inside a workspace."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import (
    command_argument,
    env_option,
    example,
    json_option,
    stdin_option,
    timeout_option,
    workspace_argument,
)
from pyro_cli.output import clock, duration, note, print_json, printable

if TYPE_CHECKING:
    from pyro_async.operations import ExecResult

__all__ = ["cancel", "command_line", "exec_", "logs", "outcome"]


@click.command(
    "exec",
    epilog=example("pyro workspace exec demo -- sh -c 'echo $HOME'", "pyro workspace exec demo --cwd /tmp -- ls -l"),
)
@workspace_argument
@command_argument
@click.option("--cwd", default="/workspace", show_default=True, metavar="PATH", help="Working directory in the guest.")
@env_option
@click.option(
    "--user", default="root", show_default=True, metavar="USER", help="Run as this user: a name or UID[:GID]."
)
@timeout_option
@stdin_option
@json_option
@click.pass_obj
async def exec_(
    app: App,
    workspace: str,
    command: tuple[str, ...],
    cwd: str,
    env: dict[str, str],
    user: str,
    timeout_seconds: float | None,
    stdin: bool,
    as_json: bool,
) -> int:
    """Run COMMAND in a workspace.

    Output streams as it is produced. The exit status is the command's, 124 if it timed out. Ctrl-C kills the command
    with all its children. Write -- before a command that has options of its own.
    """
    from pyro_cli.exec_io import carry_out

    async with app.client() as client:
        operation = partial(
            client.exec_workspace, workspace, command, cwd=cwd, env=env, user=user, timeout_seconds=timeout_seconds
        )
        return await carry_out(operation, as_json=as_json, stdin=stdin)


@click.command(epilog=example("pyro workspace logs demo --limit 5"))
@workspace_argument
@click.option(
    "--limit", type=int, default=20, show_default=True, metavar="N", help="Show the N newest commands, 1 to 1000."
)
@json_option
@click.pass_obj
async def logs(app: App, workspace: str, limit: int, as_json: bool) -> None:
    """Show a workspace's newest commands with their output, oldest first."""
    async with app.client() as client:
        found = await client.logs_workspace(workspace, limit=limit)
    if as_json:
        print_json(found)
        return
    if not found.entries:
        note("no command has run in this workspace")
    for number, entry in enumerate(found.entries):
        print(end="\n" if number else "")
        _print_entry(entry)


@click.command(epilog=example("pyro workspace cancel demo 5f0c2a7e91d3"))
@workspace_argument
@click.argument("exec_id", metavar="EXEC")
@json_option
@click.pass_obj
async def cancel(app: App, workspace: str, exec_id: str, as_json: bool) -> None:
    """Kill a running command with all its children.

    Does nothing to a command that has ended. `pyro workspace logs` shows the ids.
    """
    async with app.client() as client:
        result = await client.cancel_exec(workspace, exec_id)
    if as_json:
        print_json(result)
    else:
        print(f"{result.exec_id}: {outcome(result)}")


def command_line(command: str | list[str]) -> str:
    """A command as one would type it, on one line."""
    return printable(command if isinstance(command, str) else shlex.join(command))


def outcome(result: ExecResult) -> str:
    """How a command ended, in a few words."""
    if result.exit_code is None:
        return "running" if result.cause is None else result.cause
    words = [f"exit {result.exit_code}"]
    words += ["timed out"] * result.timed_out + ["cancelled"] * result.cancelled
    if result.cause is not None:
        words.append(result.cause)
    return ", ".join(words)


def _print_entry(entry: ExecResult) -> None:
    print(
        f"#{entry.sequence}  {entry.exec_id}  {clock(entry.started_at)}  {outcome(entry)}  "
        f"({duration(entry.duration_ms / 1000)})"
    )
    print(f"$ {command_line(entry.command)}")
    for text in (entry.stdout, entry.stderr):
        if text:
            print(text, end="" if text.endswith("\n") else "\n")
    sys.stdout.flush()
