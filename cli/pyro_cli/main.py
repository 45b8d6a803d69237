"""The console script's entry."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Runs the command line of this process and exits."""
    status = 130
    try:
        _prepare_streams()
        # Imported here, so that Ctrl-C meanwhile ends as quietly as later.
        import anyio

        from pyro_cli.invocation import invoke

        status = anyio.run(invoke, sys.argv[1:])
    except KeyboardInterrupt:
        pass
    # Not through the interpreter's shutdown: it would wait for a thread that writes to a pipe nobody reads any more.
    os._exit(status)


def _prepare_streams() -> None:
    # A closed one becomes /dev/null: its number would go to the next file or socket that is opened.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the locale cannot show
