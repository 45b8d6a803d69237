"""``pyro events``: what happened, and what happens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import example
from pyro_cli.output import clock, note, printable

if TYPE_CHECKING:
    from pyro_async.operations import Event

__all__ = ["events"]


@click.command(epilog=example("pyro events --follow", "pyro events --json --after 1024"))
@click.option(
    "--after", type=int, default=0, show_default=True, metavar="CURSOR", help="Begin behind the event of this id."
)
@click.option("--limit", type=int, metavar="N", help="End after N events.  [default: 1000, and none with --follow]")
@click.option("--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
async def events(app: App, after: int, limit: int | None, follow: bool, as_json: bool) -> None:
    """Show what happened to workspaces and commands, oldest first.

    Every event has an id, which is the cursor to go on from: pass the last one you have seen with --after, also after
    the daemon was restarted.
    """
    show = _print_line if as_json else _print_event
    async with app.client() as client:
        if follow:
            async with client.follow_events(after=after, limit=limit) as stream:
                async for event in stream:
                    show(event)
            return
        found = await client.list_events(after=after, limit=limit)
    for event in found.events:
        show(event)
    if not found.events and not as_json:
        note("nothing has happened" + (f" after {after}" if after else ""))


def _print_line(event: Event) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()


def _print_event(event: Event) -> None:
    about = [event.workspace_id or "-", *(f"{key}={value}" for key, value in event.detail.items() if value is not None)]
    print(f"{event.event_id:>6}  {clock(event.time)}  {event.kind:<20}  {printable(' '.join(about))}", flush=True)
