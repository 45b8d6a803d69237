"""``pyro workspace exec``, ``wait``, ``attach``, ``read`` and ``cancel``: commands inside a workspace."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
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
from pyro_cli.output import is_terminal, note, print_json, printable

if TYPE_CHECKING:
    from pyro_async.calls import CallEvent
    from pyro_async.operations import ExecResult, LogEnded

__all__ = ["attach", "cancel", "command_line", "exec_", "outcome", "read", "wait"]

exec_argument = click.argument("exec_id", metavar="EXEC")
cursor_option = click.option(
    "--cursor", type=int, default=0, show_default=True, metavar="N", help="Begin behind so many bytes of output."
)


@click.command(
    "exec",
    epilog=example(
        "pyro workspace exec demo -- sh -c 'echo $HOME'",
        "pyro workspace exec demo --cwd /tmp -- ls -l",
        "pyro workspace exec demo --detach --idempotency-key build-7 -- make",
    ),
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
@click.option("--detach", is_flag=True, help="Print the command's id and leave it running.")
@click.option(
    "--idempotency-key", metavar="KEY", help="Run the command once, however often it is asked for with this key."
)
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
    detach: bool,
    idempotency_key: str | None,
    as_json: bool,
) -> int:
    """Run COMMAND in a workspace.

    Output streams as it is produced. The exit status is the command's, 124 if it timed out. Ctrl-C kills the command
    with all its children. Write -- before a command that has options of its own.

    With --detach it returns at once; see `wait`, `attach` and `read`. With --idempotency-key a command that already
    has this key is not run again: its output is shown from the start, and its exit status returned.
    """
    if detach and stdin:
        raise click.UsageError("--detach and --stdin exclude each other: nobody is there to send the input.")
    from pyro_cli.exec_io import carry_out

    async with app.client() as client:
        operation = partial(
            client.exec_workspace,
            workspace,
            command,
            cwd=cwd,
            env=env,
            user=user,
            timeout_seconds=timeout_seconds,
            detach=detach,
            idempotency_key=idempotency_key,
        )
        if not detach:
            return await carry_out(operation, as_json=as_json, stdin=stdin)
        result = await operation()
    if as_json:
        print_json(result)
    else:
        print(result.exec_id)
        if is_terminal(2):
            note(f"next: pyro workspace attach {workspace} {result.exec_id}")
    return 0


@click.command(epilog=example("pyro workspace wait demo 5f0c2a7e91d3 --wait-seconds 60"))
@workspace_argument
@exec_argument
@click.option("--wait-seconds", type=float, metavar="S", help="Wait S seconds at most; the command goes on.")
@json_option
@click.pass_obj
async def wait(app: App, workspace: str, exec_id: str, wait_seconds: float | None, as_json: bool) -> int:
    """Wait until a command has ended.

    The exit status is the command's, 125 if it still runs when the time is up.
    """
    from pyro_cli.exec_io import exit_status

    async with app.client() as client:
        result = await client.wait_exec(workspace, exec_id, wait_seconds=wait_seconds)
    if as_json:
        print_json(result)
    else:
        print(f"{result.exec_id}: {outcome(result)}")
    return exit_status(result)


@click.command(epilog=example("pyro workspace attach demo 5f0c2a7e91d3"))
@workspace_argument
@exec_argument
@cursor_option
@json_option
@click.pass_obj
async def attach(app: App, workspace: str, exec_id: str, cursor: int, as_json: bool) -> int:
    """Show a command's output from the start, and as it is produced until the command ends.

    The exit status is the command's. Ctrl-C leaves it running.
    """
    from pyro_async.operations import ExecResult
    from pyro_cli.exec_io import carry_out

    async with app.client() as client:

        async def follow(
            *, stdin: AsyncIterator[bytes] | None, on_event: Callable[[CallEvent], Awaitable[None] | None]
        ) -> ExecResult:
            async with client.attach_exec(workspace, exec_id, cursor=cursor) as events:
                async for event in events:
                    if isinstance(event, ExecResult):
                        break
                    if (delivery := on_event(event)) is not None:
                        await delivery
            assert isinstance(event, ExecResult)  # always the last
            return event

        return await carry_out(follow, as_json=as_json, stdin=False)


@click.command(epilog=example("pyro workspace read demo 5f0c2a7e91d3 --cursor 16384"))
@workspace_argument
@exec_argument
@cursor_option
@click.option(
    "--max-bytes", type=int, default=16384, show_default=True, metavar="N", help="Bytes of output, 4 to 1048576."
)
@json_option
@click.pass_obj
async def read(app: App, workspace: str, exec_id: str, cursor: int, max_bytes: int, as_json: bool) -> None:
    """Show a page of a command's output without waiting for more.

    What it wrote to stderr goes to stderr. Where the next page begins is said there as well.
    """
    async with app.client() as client:
        page = await client.read_exec(workspace, exec_id, cursor=cursor, max_bytes=max_bytes)
    if as_json:
        print_json(page)
        return
    if page.truncated:
        note(f"output before cursor {page.cursor} is no longer kept")
    for piece in page.output:
        print(piece.text, end="", flush=True, file=sys.stdout if piece.stream == "stdout" else sys.stderr)
    if page.next_cursor < page.end or not page.ended:
        note(f"next: --cursor {page.next_cursor}")


@click.command(epilog=example("pyro workspace cancel demo 5f0c2a7e91d3"))
@workspace_argument
@exec_argument
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


def outcome(result: ExecResult | LogEnded) -> str:
    """How a command ended, in a few words."""
    if result.exit_code is None:
        return "running" if result.cause is None else result.cause
    words = [f"exit {result.exit_code}"]
    words += ["timed out"] * result.timed_out + ["cancelled"] * result.cancelled
    if result.cause is not None:
        words.append(result.cause)
    return ", ".join(words)
