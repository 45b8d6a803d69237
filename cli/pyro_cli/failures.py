"""What a user sees when a command fails: one line on stderr, or one object on stdout with ``--json``.

``PYRO_DEBUG=1`` shows the traceback as well.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Final

import asyncclick as click
from asyncclick.exceptions import NoArgsIsHelpError

from pyro_async.errors import InternalError, InvalidArgument, PyroError
from pyro_cli.exec_io import BROKEN_PIPE_STATUS
from pyro_cli.output import one_line, print_json

__all__ = ["report"]

_INTERRUPTED_STATUS: Final = 130


def report(error: Exception, home: Path, *, as_json: bool) -> int:
    """Tells the user about ``error`` and returns the exit status."""
    if os.environ.get("PYRO_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    lone = _lone(error)
    if isinstance(lone, NoArgsIsHelpError):
        print(lone.format_message(), file=sys.stderr)
        return lone.exit_code
    if isinstance(lone, click.Abort):
        return _INTERRUPTED_STATUS
    if isinstance(lone, BrokenPipeError):
        _drop_output()
        return BROKEN_PIPE_STATUS
    failure = _as_pyro_error(lone, home)
    _print(failure, as_json=as_json)
    return failure.exit_status


def _print(failure: PyroError, *, as_json: bool) -> None:
    try:
        sys.stdout.flush()
        if as_json:
            print_json({"ok": False, "error": {"code": failure.code, "message": failure.message, "hint": failure.hint}})
            return
    except OSError:  # stdout is full or nobody reads it; stderr remains
        _drop_output()
    try:
        print(f"error: {one_line(str(failure))}", file=sys.stderr, flush=True)
    except OSError:
        pass  # there is nobody left to tell


def _lone(error: BaseException) -> BaseException:
    """The error inside groups; of several the first, the rest followed from the cancellation it caused."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _as_pyro_error(error: BaseException, home: Path) -> PyroError:
    if isinstance(error, PyroError):
        return error
    if isinstance(error, click.UsageError):
        return _usage_error(error)
    if isinstance(error, click.ClickException):
        return PyroError(error.format_message())
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return PyroError("no space left for the output", hint="free space where standard output goes")
    return InternalError(
        f"unexpected {type(error).__name__}: {error}",
        hint=f"a defect in pyro; PYRO_DEBUG=1 shows where, and {home / 'daemon.log'} what the daemon did",
    )


def _usage_error(error: click.UsageError) -> InvalidArgument:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx is not None else "pyro"
    hint = f"see `{path} --help`"
    if isinstance(error, click.NoSuchOption) and error.cmd is not None and _runs_commands(error.cmd):
        hint = f"write -- before the command if {error.option_name} belongs to it; {hint}"
    return InvalidArgument(message[:1].lower() + message[1:], hint=hint)


def _runs_commands(command: click.Command) -> bool:
    return any(parameter.name == "command" for parameter in command.params)


def _drop_output() -> None:
    """Lets whatever is still buffered for a reader that is gone vanish."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
