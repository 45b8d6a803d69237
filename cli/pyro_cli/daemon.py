"""``pyro daemon``: the process that owns a home's workspaces."""

from __future__ import annotations

import asyncclick as click
from msgspec import structs

from pyro_cli.app import App
from pyro_cli.options import example, json_option
from pyro_cli.output import ago, clock, note, print_fields, print_json

__all__ = ["daemon"]


@click.group(epilog=example("pyro daemon status"))
def daemon() -> None:
    """Look after the daemon that owns all workspaces of a home.

    Other commands start it when they need it.
    """


@daemon.command(epilog=example("pyro daemon run"))
@json_option
@click.pass_obj
async def run(app: App, as_json: bool) -> None:
    """Run the daemon in the foreground, for a service manager or to watch it.

    Logs go to stderr. With --json one object is printed once it answers.
    """
    from pyro_async.runtime.daemon import serve_home
    from pyro_async.runtime.log import configure_log

    def ready() -> None:
        if as_json:
            print_json({"serving": str(app.home)})

    configure_log(None)
    await serve_home(app.home, ready)


@daemon.command(epilog=example("pyro daemon status"))
@json_option
@click.pass_obj
async def status(app: App, as_json: bool) -> None:
    """Say whether the daemon runs."""
    from pyro_async.transport import daemon_status

    found = await daemon_status(app.home)
    if as_json:
        print_json({"running": False} if found is None else {"running": True, **structs.asdict(found)})
    elif found is None:
        note(f"no daemon runs for {app.home}; commands start it when they need it")
    else:
        print_fields(
            [
                ("home", str(app.home)),
                ("pid", str(found.pid)),
                ("version", found.version),
                ("started", f"{clock(found.started_at)} ({ago(found.started_at)})"),
                ("workspaces", str(found.workspaces)),
            ]
        )


@daemon.command(epilog=example("pyro daemon stop", "pyro daemon stop --all"))
@click.option("--all", is_flag=True, help="Also shut down its VMs; without it they run on for the next daemon.")
@json_option
@click.pass_obj
async def stop(app: App, all: bool, as_json: bool) -> None:  # noqa: A002 - the flag's name
    """Stop the daemon."""
    from pyro_async.transport import stop_daemon

    stopped = await stop_daemon(app.home, all=all)
    if as_json:
        print_json({"stopped": stopped})
    elif stopped:
        print("stopped the daemon")
    else:
        note(f"no daemon runs for {app.home}")
