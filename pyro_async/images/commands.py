"""Child processes that build things: their output is kept, their failure explains itself, cancelling ends them all."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import Process

from pyro_async.errors import EnvironmentBuildFailed, HostDiskFull, SetupRequired

__all__ = ["run_command", "search_path"]

STOP_GRACE_SECONDS = 5.0
"""How long a cancelled command may clean up after SIGTERM: mmdebstrap unmounts what it mounted."""

_TAIL_LINES = 12
_SYSTEM_DIRECTORIES = "/usr/sbin:/sbin"
_OUTPUT_LIMIT = 16 << 20


def search_path() -> str:
    """Returns PATH with the system directories, where mke2fs is and an ordinary user's PATH does not look."""
    return f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_DIRECTORIES}"


async def run_command(
    argv: Sequence[str],
    *,
    what: str,
    log: IO[bytes],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    keep: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Runs a command to its end and returns its output, stdout and stderr as they came.

    Args:
        what: names the work in errors: "installing packages".
        log: gets all output.
        env: added to the environment; messages are always in English, which some callers parse.
        keep: descriptors the command inherits, and with them the locks on them: they last until it has ended too.
        on_line: gets each line of output as it comes.

    Cancelling terminates the whole process group and waits for its end, at most :data:`STOP_GRACE_SECONDS`.

    Raises:
        SetupRequired: the command does not exist.
        HostDiskFull: it failed because the disk is full.
        EnvironmentBuildFailed: it failed otherwise; the message carries the end of its output.
    """
    log.write(f"+ {' '.join(argv)}\n".encode())
    log.flush()
    try:
        process = await anyio.open_process(
            list(argv),
            stdin=subprocess.DEVNULL,  # nothing here may ask questions
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "PATH": search_path(), "LC_ALL": "C", **(env or {})},
            start_new_session=True,
            pass_fds=tuple(keep),
        )
    except FileNotFoundError as error:
        if error.filename != argv[0]:  # it is cwd that does not exist
            raise
        raise SetupRequired(f"{argv[0]} is missing, needed for {what}", hint="run: pyro setup") from error
    try:
        output = await _collect(process, log, on_line)
        status = await process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            await _end_group(process)
    if status:
        _raise_failure(what, status, output, Path(log.name))
    return output


async def _collect(process: Process, log: IO[bytes], on_line: Callable[[str], None] | None) -> str:
    assert process.stdout is not None
    output = bytearray()
    pending = b""
    async for chunk in process.stdout:
        log.write(chunk)
        log.flush()
        output += chunk
        del output[:-_OUTPUT_LIMIT]
        *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
        if on_line:
            for line in filter(None, lines):
                on_line(line.decode(errors="replace"))
    return output.decode(errors="replace")


async def _end_group(process: Process) -> None:
    if process.returncode is None:
        _signal_group(process, signal.SIGTERM)
        with anyio.move_on_after(STOP_GRACE_SECONDS):
            await process.wait()
        _signal_group(process, signal.SIGKILL)
        await process.wait()
    await process.aclose()


def _signal_group(process: Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        # The group has ended; or it runs as another user (sudo), which then passes the terminal's signals on itself.
        return


def _raise_failure(what: str, status: int, output: str, log: Path) -> None:
    if "No space left on device" in output:
        raise HostDiskFull(f"no space left on the host while {what}", hint="free some disk space and try again")
    tail = "\n".join(output.strip().splitlines()[-_TAIL_LINES:])
    ended = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
    raise EnvironmentBuildFailed(f"{what} {ended}:\n{tail}", hint=f"the whole output is in {log}")
