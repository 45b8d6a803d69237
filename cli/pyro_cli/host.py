"""``pyro setup`` and ``pyro doctor``: what pyro needs of the host."""

from __future__ import annotations

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import example, json_option
from pyro_cli.output import duration, print_json, print_table
from pyro_cli.phases import show_phases

__all__ = ["doctor", "setup"]


@click.command(epilog=example("pyro setup"))
@json_option
@click.pass_obj
async def setup(app: App, as_json: bool) -> None:
    """Make this host ready.

    Installs missing packages and makes the kernel and the guest's tools. May be repeated and interrupted at any time.
    """
    from pyro_async import provision

    with show_phases(as_json=as_json) as phases:
        report = await provision.setup(app.home, phases)
    if as_json:
        print_json(report)
        return
    if report.installed:
        print(f"installed {' '.join(report.installed)}")
    print(f"ready after {duration(report.seconds)}; everything is in {report.home}")


@click.command(epilog=example("pyro doctor", "pyro doctor --deep"))
@click.option("--deep", is_flag=True, help="Also verify all images and boot a probe VM with each driver.")
@json_option
@click.pass_obj
async def doctor(app: App, deep: bool, as_json: bool) -> int:
    """Say what is there, what is missing and what to do about it.

    Exits with 1 if workspaces cannot run here.
    """
    from pyro_async import provision

    with show_phases(as_json=True, transient=True) as phases:
        found = await provision.diagnose(app.home, deep, phases)
    if as_json:
        print_json(found)
    else:
        print_table(
            ("STATE", "CHECK", "FOUND"),
            [
                (
                    "ok" if check.ok else "failed",
                    check.name,
                    f"{check.detail}; {check.hint}" if check.hint else check.detail,
                )
                for check in found.checks
            ],
        )
    return 0 if found.ok else 1
