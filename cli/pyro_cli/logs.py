"""``pyro workspace logs``: what ran in a workspace, and what runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import asyncclick as click
from anyio import to_thread

from pyro_cli.app import App
from pyro_cli.execs import command_line, outcome
from pyro_cli.options import example, json_option, workspace_argument
from pyro_cli.output import clock, duration, note, print_json, printable

if TYPE_CHECKING:
    from pyro_async.operations import ExecResult, LogEvent

__all__ = ["logs"]


@click.command(epilog=example("pyro workspace logs demo --limit 5", "pyro workspace logs demo --follow"))
@workspace_argument
@click.option(
    "--limit", type=int, default=20, show_default=True, metavar="N", help="Show the N newest commands, up to 1000."
)
@click.option("--follow", is_flag=True, help="Go on with what commands print, until the workspace is deleted.")
@click.option("--cursor", metavar="CURSOR", help="With --follow: go on behind the event that had this cursor.")
@json_option
@click.pass_obj
async def logs(app: App, workspace: str, limit: int, follow: bool, cursor: str | None, as_json: bool) -> None:
    """Show a workspace's newest commands with their output, oldest first.

    With --follow all of it, and what commands print from then on; --json makes that one object a line, each with the
    cursor to go on from.
    """
    if cursor is not None and not follow:
        raise click.UsageError("--cursor goes with --follow.")
    if follow:
        await _follow(app, workspace, limit, cursor, as_json=as_json)
        return
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


async def _follow(app: App, workspace: str, limit: int, cursor: str | None, *, as_json: bool) -> None:
    from pyro_cli.exec_io import write_all

    shown = _Shown()
    async with app.client() as client, client.follow_logs(workspace, limit=limit, cursor=cursor) as events:
        async for event in events:
            if as_json:
                print_json(event)
            elif data := shown.bytes_of(event):
                # Abandoned when cancelled: the reader of a full pipe may never come back.
                await to_thread.run_sync(write_all, 1, data, abandon_on_cancel=True)


class _Shown:
    """Events as text for people: a heading wherever another command goes on."""

    def __init__(self) -> None:
        self._current = ""
        self._line_ended = True

    def bytes_of(self, event: LogEvent) -> bytes:
        from pyro_async.operations import LogDropped, LogEnded, LogOutput, LogStarted

        if isinstance(event, LogOutput):
            heading = b"" if event.exec_id == self._current else self._heading(event.exec_id)
            data = heading + event.data
        elif isinstance(event, LogStarted):
            data = self._heading(event.exec_id, f"  $ {printable(event.command)}")
        elif isinstance(event, LogDropped):
            data = self._heading(event.exec_id, "  … some output is no longer kept …")
        else:
            data = self._heading(event.exec_id, f"  {outcome(event)}")
        self._current = "" if isinstance(event, LogEnded) else event.exec_id
        self._line_ended = data.endswith(b"\n")
        return data

    def _heading(self, exec_id: str, text: str = "") -> bytes:
        return f"{'' if self._line_ended else chr(10)}==> {exec_id}{text}\n".encode()


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
