"""Arguments and options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import asyncclick as click

__all__ = [
    "command_argument",
    "env_option",
    "example",
    "json_option",
    "label_option",
    "mem_option",
    "optional_workspace_argument",
    "stdin_option",
    "timeout_option",
    "vcpu_option",
    "workspace_argument",
]

F = TypeVar("F", bound=Callable[..., Any])


class KeyValue(click.ParamType[tuple[str, str]]):
    """``KEY=VALUE``, as a pair; the value may be empty and may hold further ``=``."""

    name = "KEY=VALUE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, separator, text = str(value).partition("=")
        if not separator or not key:
            self.fail(f"{value!r} is not of the form KEY=VALUE.", param, ctx)
        return key, text


def example(*lines: str) -> str:
    """The end of a help text: command lines to copy, which click must not wrap."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def _as_dict(ctx: click.Context, param: click.Parameter, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    return dict(pairs)


def _complete_workspace(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from pyro_cli.completion import workspace_names

    return [name for name in workspace_names(ctx.find_root().obj) if name.startswith(incomplete)]


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
workspace_argument: Final = click.argument("workspace", metavar="WORKSPACE", shell_complete=_complete_workspace)
optional_workspace_argument: Final = click.argument(
    "workspace", metavar="[WORKSPACE]", required=False, shell_complete=_complete_workspace
)
command_argument: Final = click.argument("command", metavar="[--] COMMAND...", nargs=-1, required=True)
vcpu_option: Final = click.option(
    "--vcpu-count", type=int, default=1, show_default=True, metavar="N", help="Virtual CPUs, 1 to 8."
)
mem_option: Final = click.option(
    "--mem-mib", type=int, default=512, show_default=True, metavar="N", help="Memory in MiB, 128 to 32768."
)
timeout_option: Final = click.option(
    "--timeout-seconds", type=float, metavar="S", help="Kill the command and its children after S seconds; exit 124."
)
stdin_option: Final = click.option("--stdin", is_flag=True, help="Send standard input to the command.")
env_option: Final = click.option(
    "--env",
    type=KeyValue(),
    multiple=True,
    callback=_as_dict,
    help="Set an environment variable; may be repeated.",
)


def label_option(text: str) -> Callable[[F], F]:
    """``--label KEY=VALUE``, any number of times."""
    return click.option("--label", "labels", type=KeyValue(), multiple=True, callback=_as_dict, help=text)
