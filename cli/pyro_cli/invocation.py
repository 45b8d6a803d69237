"""One command line, from its arguments to its exit status: signals cancel it, errors become one line each."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import anyio
import asyncclick as click
from anyio.abc import TaskStatus

from pyro_async.errors import InvalidArgument
from pyro_cli.app import COMPLETE_VARIABLE, App, pyro
from pyro_cli.output import is_terminal

if TYPE_CHECKING:
    from pyro_async.calls import Transport

__all__ = ["invoke"]

_SHOW_CURSOR: Final = b"\r\x1b[2K\x1b[?25h"


async def invoke(argv: Sequence[str], *, transport: Transport | None = None) -> int:
    """Runs one command line and returns its exit status; never raises an error of the command.

    SIGINT and SIGTERM cancel the command and with it the operation it waits for; the status is then 128 + signal. The
    second such signal ends the process at once.
    """
    received: list[int] = []
    status = 0
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        await tasks.start(_cancel_on_signal, scope, received)
        with scope:
            status = await _dispatch(list(argv), App(transport))
        tasks.cancel_scope.cancel()
    return 128 + received[0] if received else status


async def _cancel_on_signal(
    scope: anyio.CancelScope, received: list[int], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if received:
                if is_terminal(2):
                    os.write(2, _SHOW_CURSOR)  # a live display hides it
                os._exit(128 + number)
            received.append(number)
            scope.cancel()


async def _dispatch(argv: list[str], app: App) -> int:
    try:
        if asked := os.environ.get(COMPLETE_VARIABLE):
            return await _complete(asked, app)
        _refuse_undecodable(argv)
        # Not through `pyro.main`: it turns a closed pipe into exit status 1.
        async with await pyro.make_context("pyro", argv, obj=app) as context:
            status = await pyro.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leaving:  # after --help and --version
        return leaving.exit_code
    except Exception as error:  # the last line of defence: no traceback reaches a user
        from pyro_cli.failures import report

        return report(error, app.home, as_json=_wants_json(argv))
    return status if isinstance(status, int) else 0


async def _complete(asked: str, app: App) -> int:
    from asyncclick.shell_completion import shell_complete

    return await shell_complete(pyro, {"obj": app}, "pyro", COMPLETE_VARIABLE, asked)


def _refuse_undecodable(argv: Sequence[str]) -> None:
    for number, argument in enumerate(argv, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(argument)
            raise InvalidArgument(
                f"argument {number} is not valid UTF-8: {shown!r}", hint="send binary data through --stdin"
            ) from None


def _wants_json(argv: Sequence[str]) -> bool:
    """Whether errors are due as JSON, also those met before the options were understood."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in own
