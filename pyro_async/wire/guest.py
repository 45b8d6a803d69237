"""Messages between the host's runtime and the agent in the guest.

The host opens a stream with ``Request(method, params)``; the agent ends it with a result or a failure. Strings that
come from a user and reach the guest's kernel (arguments, paths, environment) are UTF-8 without NUL; the host checks
that. Everything that comes back is untrusted until it is decoded into these types.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

__all__ = [
    "STDERR",
    "STDIN",
    "STDOUT",
    "Attach",
    "Configure",
    "Configured",
    "Exec",
    "ExecExit",
    "ExecStarted",
    "Forget",
    "GuestCall",
    "Running",
    "RunningExec",
    "Shutdown",
    "Stats",
    "StatsResult",
]

# Channels of an exec stream's data frames.
STDIN = 0
STDOUT = 1
STDERR = 2

Offset = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]


class GuestCall(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Base of the parameter types; ``method`` is the request's method name."""

    method: ClassVar[str]


class Configure(GuestCall, frozen=True):
    """Gives the guest its identity, before anything else runs in it; answered by :class:`Configured`.

    Sets clock, entropy, hostname and machine-id, mounts the upper disk and enters the overlay root. A second call after
    the root is mounted only sets the clock.

    Attributes:
        hostname: the new host name.
        machine_id: 32 lower-case hex digits for /etc/machine-id.
        clock_ns: the host's wall clock, nanoseconds since the epoch, taken as late as possible.
        entropy: seed for the kernel's generator, 64 bytes or more.
        workspace_path: directory to create if missing; the working directory of everything.
    """

    method: ClassVar[str] = "configure"
    hostname: str
    machine_id: str
    clock_ns: int
    entropy: bytes
    workspace_path: str = "/workspace"


class Configured(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The guest has its root and identity. ``kernel`` is ``uname -r``; ``seconds`` how long configuring took."""

    kernel: str
    seconds: float


class Exec(GuestCall, frozen=True):
    """Runs one command in a control group of its own.

    The agent answers with one :class:`ExecStarted` message, data frames on STDOUT and STDERR, and ends the stream with
    :class:`ExecExit`. Data frames on STDIN and a half-close come from the host. A cancel frame kills the whole tree.
    The loss of the connection does *not*: the command goes on, its output waits (bounded by the window), and
    :class:`Attach` picks it up.

    Attributes:
        exec_id: chosen by the host, unique in this workspace; a second Exec with a known id attaches to the first.
        argv: the command, run as it is.
        cwd: working directory in the guest.
        env: added to the default environment (PATH, HOME, USER, LOGNAME, SHELL, LANG, PWD).
        user: name or ``uid[:gid]``; root by default.
        stdin: whether STDIN data follows; otherwise stdin is /dev/null.
        timeout_seconds: after this long the tree is killed and the result says timed_out.
    """

    method: ClassVar[str] = "exec"
    exec_id: str
    argv: list[str]
    cwd: str = "/workspace"
    env: dict[str, str] = {}
    user: str = "root"
    stdin: bool = False
    timeout_seconds: float | None = None


class ExecStarted(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The command's process exists (or an attach found it).

    Attributes:
        pid: process id in the guest, 0 if it could not be started at all.
        started_at: guest's wall clock, seconds since the epoch.
        stdin_offset: bytes of STDIN the agent has accepted so far; the host continues there.
    """

    pid: int
    started_at: float
    stdin_offset: Offset = 0


class ExecExit(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How a command ended; the last thing on its stream, after all of its output.

    Attributes:
        exit_code: 0 to 255; 128 + signal if a signal ended it; 124 on timeout; 126/127 as a shell has them.
        signal: number of the signal that ended the main process, or None.
        timed_out: the agent's timer ended it.
        cancelled: a cancel frame ended it.
        cause: ``oom`` if the kernel killed a process of the tree for memory, ``enospc`` if the command failed while the
            guest's disk was full, else None.
        duration_seconds: from start to the main process's exit, by the guest's monotonic clock.
    """

    exit_code: Annotated[int, Meta(ge=0, le=255)]
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    timed_out: bool = False
    cancelled: bool = False
    cause: Annotated[str, Meta(max_length=64)] | None = None
    duration_seconds: Annotated[float, Meta(ge=0)] = 0.0


class Attach(GuestCall, frozen=True):
    """Takes over the stream of a command started on an earlier connection; goes on as for :class:`Exec`.

    The offsets name how many bytes of each output the host has stored; the agent drops those and sends on from there.
    """

    method: ClassVar[str] = "attach"
    exec_id: str
    stdout_offset: Offset = 0
    stderr_offset: Offset = 0


class Running(GuestCall, frozen=True):
    """Asks which commands the agent still holds: those running, and those ended whose exit nobody has acknowledged."""

    method: ClassVar[str] = "running"


class RunningExec(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One entry of the answer to :class:`Running` (a list)."""

    exec_id: str
    pid: int
    stdin_offset: Offset


class Forget(GuestCall, frozen=True):
    """The host has durably recorded these commands' exits: the agent may drop them. Answered by None."""

    method: ClassVar[str] = "forget"
    exec_ids: list[str]


class Shutdown(GuestCall, frozen=True):
    """Ends every command (TERM, grace, KILL), syncs, makes the disk read-only and clean, then powers off.

    Answered by None just before the power goes, so the host then waits for the VMM's exit.
    """

    method: ClassVar[str] = "shutdown"
    grace_seconds: float = 2.0


class Stats(GuestCall, frozen=True):
    """Asks what the guest uses at this moment; answered by :class:`StatsResult`. Cheap: some files below /proc."""

    method: ClassVar[str] = "stats"


class StatsResult(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What the guest uses, by its own account.

    Attributes:
        uptime_seconds: since its kernel started.
        cpu_seconds: spent on anything but idling and waiting for disks, all CPUs together, since then.
        mem_total, mem_available: bytes; available is what programs could still get, caches included.
        disk_total, disk_free: bytes of the workspace's disk.
        process_count: processes, the agent and kernel threads included.
    """

    uptime_seconds: Seconds
    cpu_seconds: Seconds
    mem_total: Count
    mem_available: Count
    disk_total: Count
    disk_free: Count
    process_count: Count
