"""``pyro completion``: shell completion, and the names it completes."""

from __future__ import annotations

from typing import Final

import asyncclick as click
from asyncclick.shell_completion import get_completion_class

from pyro_cli.app import COMPLETE_VARIABLE, App, pyro
from pyro_cli.options import example, json_option
from pyro_cli.output import print_json

__all__ = ["completion", "workspace_names"]

#: Seconds after which pressing Tab gives no names rather than a hanging shell.
_PATIENCE: Final = 1.0


@click.command(epilog=example("pyro completion bash > ~/.local/share/bash-completion/completions/pyro"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script for SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(pyro, {}, "pyro", COMPLETE_VARIABLE).source()
    if as_json:
        print_json({"shell": shell, "script": source})
    else:
        print(source)


def workspace_names(app: App) -> list[str]:
    """Names of all workspaces, or ids of those that have none; nothing if that would take a daemon's start.

    Blocks. The completion protocol asks from inside the event loop without waiting, hence a loop of its own.
    """
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal:
        return portal.call(_names, app)


async def _names(app: App) -> list[str]:
    import anyio

    from pyro_async.errors import PyroError
    from pyro_async.transport import daemon_status

    names: list[str] = []
    try:
        with anyio.move_on_after(_PATIENCE):
            if app.transport is not None or await daemon_status(app.home) is not None:
                async with app.client() as client:
                    names = [each.name or each.workspace_id for each in (await client.list_workspaces()).workspaces]
    except* PyroError:
        pass  # a completion has nowhere to report to
    return names
