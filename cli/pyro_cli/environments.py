"""``pyro env``: the root file systems that workspaces start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import example, json_option
from pyro_cli.output import clock, print_fields, print_json, print_table, size
from pyro_cli.phases import show_phases

if TYPE_CHECKING:
    from pyro_async.operations import Environment

__all__ = ["env"]


@click.group(epilog=example("pyro env list", "pyro env build debian:12"))
def env() -> None:
    """Build and inspect environments, which workspaces start from."""


@env.command("list", epilog=example("pyro env list"))
@json_option
@click.pass_obj
async def list_(app: App, as_json: bool) -> None:
    """List environments that are built or can be built by name."""
    async with app.client() as client:
        found = await client.list_environments()
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "STATE", "SIZE", "DESCRIPTION"),
        [
            (
                each.name,
                "built" if each.built else "-",
                size(each.size_bytes) if each.built else "-",
                each.description,
            )
            for each in found.environments
        ],
    )


@env.command(epilog=example("pyro env build debian:12", "pyro env build debian:12 --force"))
@click.argument("environment")
@click.option("--force", is_flag=True, help="Build it anew even if it is there.")
@json_option
@click.pass_obj
async def build(app: App, environment: str, force: bool, as_json: bool) -> None:
    """Build ENVIRONMENT unless it is there already."""
    with show_phases(as_json=as_json) as phases:
        async with app.client() as client:
            built = await client.build_environment(environment, force=force, on_progress=phases)
    _show(built, as_json)


@env.command(epilog=example("pyro env inspect debian:12"))
@click.argument("environment")
@json_option
@click.pass_obj
async def inspect(app: App, environment: str, as_json: bool) -> None:
    """Describe one environment."""
    async with app.client() as client:
        found = await client.inspect_environment(environment)
    _show(found, as_json)


@env.command(epilog=example("pyro env prune", "pyro env prune --all"))
@click.option("--all", is_flag=True, help="Also remove images that only a name refers to.")
@json_option
@click.pass_obj
async def prune(app: App, all: bool, as_json: bool) -> None:  # noqa: A002 - the flag's name
    """Remove images that no name and no workspace refers to."""
    async with app.client() as client:
        pruned = await client.prune_environments(all=all)
    if as_json:
        print_json(pruned)
        return
    count = len(pruned.removed)
    print(f"removed {count} image{'' if count == 1 else 's'}, freed {size(pruned.bytes_freed)}")


def _show(environment: Environment, as_json: bool) -> None:
    if as_json:
        print_json(environment)
        return
    fields = [("name", environment.name), ("description", environment.description)]
    if environment.built:
        fields += [("state", "built"), ("size", size(environment.size_bytes))]
    else:
        fields.append(("state", "not built"))
    if environment.created_at is not None:
        fields.append(("built at", clock(environment.created_at)))
    if environment.digest is not None:
        fields.append(("digest", environment.digest))
    if environment.packages:
        fields.append(("packages", " ".join(environment.packages)))
    print_fields(fields)
