"""The root of the command tree, and what all commands share."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncclick as click

from pyro_async import __version__

if TYPE_CHECKING:
    from pyro_async.calls import Transport
    from pyro_async.client import AsyncPyro

__all__ = ["COMPLETE_VARIABLE", "App", "LazyGroup", "pyro"]

#: Set by the shell's completion function when it asks this program for words.
COMPLETE_VARIABLE: Final = "_PYRO_COMPLETE"


class App:
    """What all commands of one invocation share.

    Attributes:
        home: the directory given by ``--home``, else the default one.
        transport: what carries operations instead of the home's daemon.
    """

    def __init__(self, transport: Transport | None = None) -> None:
        self.transport: Final = transport
        self._home: Path | None = None

    @property
    def home(self) -> Path:
        if self._home is None:
            from pyro_async.home import default_home

            self._home = default_home()
        return self._home

    @home.setter
    def home(self, home: Path) -> None:
        self._home = home

    def client(self) -> AsyncPyro:
        """Returns a client to be entered; that starts the daemon if none runs."""
        from pyro_async.client import AsyncPyro

        return AsyncPyro(self.home, transport=self.transport)


class LazyGroup(click.Group):
    """A group whose members are imported when they are needed.

    Args:
        members: name of each command to ``module:attribute``, in the order of the help text.
    """

    def __init__(self, *, members: Mapping[str, str], **options: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(**options)
        self.members: Final = members

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.members:
            return None
        module, _, attribute = self.members[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    async def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return await super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # the base class does not know the names it could have meant
            raise click.NoSuchCommand(error.command_name, possibilities=self.members, ctx=ctx) from None


@click.group(
    cls=LazyGroup,
    members={
        "setup": "pyro_cli.host:setup",
        "doctor": "pyro_cli.host:doctor",
        "run": "pyro_cli.run:run",
        "workspace": "pyro_cli.workspace:workspace",
        "env": "pyro_cli.environments:env",
        "mcp": "pyro_cli.mcp:mcp",
        "top": "pyro_cli.top:top",
        "daemon": "pyro_cli.daemon:daemon",
        "debug": "pyro_cli.debug:debug",
        "events": "pyro_cli.events:events",
        "completion": "pyro_cli.completion:completion",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  pyro run debian:12 -- uname -a",
)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of all state.  [default: $PYRO_HOME or ~/.local/state/pyro]",
)
@click.version_option(__version__, "--version", prog_name="pyro", message="%(prog)s %(version)s")
@click.pass_obj
def pyro(app: App, home: Path | None) -> None:
    """Disposable Linux microVMs for coding agents.

    Every command takes --json. Errors exit with 125, wrong usage with 2.
    """
    if home is not None:
        app.home = home.expanduser().absolute()
