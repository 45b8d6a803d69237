"""A command's output to our stdout and stderr, our stdin to a command: raw bytes, without blocking the event loop."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from pyro_async.calls import CallEvent
from pyro_async.operations import ExecOutput, ExecResult, OutputDropped, Progress
from pyro_cli.output import note, print_json
from pyro_cli.phases import Phases, show_phases

__all__ = ["BROKEN_PIPE_STATUS", "NO_STATUS", "Operation", "carry_out", "exit_status", "read_stdin", "write_all"]

#: What a shell shows for a process that SIGPIPE ended.
BROKEN_PIPE_STATUS: Final = 141
#: The status for a command that has none: its VM was lost, or it still runs.
NO_STATUS: Final = 125
_READ_SIZE: Final = 256 * 1024
_DESCRIPTORS: Final = {"stdout": 1, "stderr": 2}
_CAUSES: Final = {
    "oom": "the guest ran out of memory; give it more with --mem-mib",
    "enospc": "the guest's disk is full",
    "lost": "the workspace's VM ended while the command ran",
}


class Operation(Protocol):
    """A method of the client that runs a command, with all but these arguments bound."""

    def __call__(
        self, *, stdin: AsyncIterator[bytes] | None, on_event: Callable[[CallEvent], Awaitable[None] | None]
    ) -> Awaitable[ExecResult]: ...


async def carry_out(operation: Operation, *, as_json: bool, stdin: bool) -> int:
    """Runs a command with our standard streams and returns the exit status for the shell.

    With ``as_json`` the result is printed at the end instead of the output as it comes. If the reader of our output
    goes away the operation is cancelled; a command that it runs is killed, as a local one would be.
    """
    source = read_stdin() if stdin else None
    if as_json:
        with show_phases(as_json=True, transient=True) as phases:
            result = await operation(stdin=source, on_event=_progress_only(phases))
        print_json(result)
        return exit_status(result)
    with show_phases(as_json=False, transient=True) as phases, anyio.CancelScope() as scope:
        output = _Output(phases, scope)
        result = await operation(stdin=source, on_event=output.take)
    if output.broken:
        return BROKEN_PIPE_STATUS
    _explain(result)
    return exit_status(result)


async def read_stdin(descriptor: int = 0) -> AsyncIterator[bytes]:
    """Yields standard input until its end; cancelling it never leaves a thread that waits for a terminal or a pipe."""
    mode = os.fstat(descriptor).st_mode
    # The rest (files, /dev/null) cannot be waited for, nor does reading it wait for anybody.
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
    while True:
        if waits:
            await anyio.wait_readable(descriptor)
            try:
                data = os.read(descriptor, _READ_SIZE)
            except BlockingIOError:  # another process that shares it was faster
                continue
        else:
            data = await to_thread.run_sync(os.read, descriptor, _READ_SIZE)
        if not data:
            return
        yield data


class _Output:
    """Writes a command's output as it comes; returning only when it is written is what slows a fast command down."""

    def __init__(self, phases: Phases, scope: anyio.CancelScope) -> None:
        self.broken = False
        self._phases = phases
        self._scope = scope

    async def take(self, event: CallEvent) -> None:
        if isinstance(event, Progress):
            self._phases(event)
            return
        self._phases.close()
        if isinstance(event, OutputDropped):
            note(f"output before cursor {event.cursor} is no longer kept")
        if isinstance(event, ExecOutput) and not self.broken:
            try:
                # Abandoned when cancelled: the reader of a full pipe may never come back.
                await to_thread.run_sync(write_all, _DESCRIPTORS[event.stream], event.data, abandon_on_cancel=True)
            except BrokenPipeError:
                self.broken = True
                self._scope.cancel()
                await checkpoint()


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of ``data``; blocks until that is done."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # whoever gave it to us made it non-blocking
            select.select([], [descriptor], [])


def _progress_only(phases: Phases) -> Callable[[CallEvent], None]:
    def take(event: CallEvent) -> None:
        if isinstance(event, Progress):
            phases(event)

    return take


def _explain(result: ExecResult) -> None:
    sys.stdout.flush()
    if result.timed_out:
        note("the command timed out; it and all its children were killed")
    elif result.cancelled:
        note("the command was cancelled")
    if result.cause is not None:
        note(_CAUSES.get(result.cause, f"the command ended because of {result.cause}"))


def exit_status(result: ExecResult) -> int:
    """What the shell is to see for a command's end."""
    return NO_STATUS if result.exit_code is None else result.exit_code
