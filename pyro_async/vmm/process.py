"""Identity, spawning and exit of processes that outlive the program that started them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from anyio import CancelScope, to_thread, wait_readable

__all__ = ["MARK", "Process", "ProcessIdentity", "listens_on"]

MARK = "PYRO_VM"
"""Environment variable of every process started here: the directory it works for."""

_STDERR_BYTES = 65536
"""What the kernel keeps of a process's stderr: the capacity of a pipe."""

_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
"""What a VMM inherits of our environment: it may hold credentials, and a VMM is what a hostile guest breaks first."""


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Names one process for as long as the host runs, even after its pid was reused.

    Attributes:
        pid: process id on the host.
        start_ticks: field 22 of /proc/PID/stat, clock ticks after boot at which it started.
        boot_id: /proc/sys/kernel/random/boot_id of the host's boot it belongs to.
    """

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Reads the identity of the process that has ``pid`` now; raises ProcessLookupError if none has."""
        _, start_ticks = _read_stat(pid)
        return cls(pid=pid, start_ticks=start_ticks, boot_id=_read_boot_id())

    def is_alive(self) -> bool:
        """Whether exactly this process still runs; one that ended but was not reaped does not."""
        try:
            state, start_ticks = _read_stat(self.pid)
        except ProcessLookupError:
            return False
        return state not in "ZX" and start_ticks == self.start_ticks and self.boot_id == _read_boot_id()


class Process:
    """A running process held by a pidfd: started here (:meth:`spawn`) or taken over (:meth:`adopt`).

    ``close()`` gives up the handles and leaves the process alone.
    """

    def __init__(self, identity: ProcessIdentity, pidfd: int, stderr: int) -> None:
        self.identity = identity
        self.ended = False
        self.returncode: int | None = None
        """Exit status or negative signal number; None while running, and for ever if it is not our child."""
        self._pidfd = pidfd
        self._stderr = stderr

    @classmethod
    async def spawn(cls, argv: Sequence[str], *, cwd: Path, stderr: str) -> Process:
        """Starts ``argv`` in a session of its own, in ``cwd``, with stdin and stdout on /dev/null.

        ``stderr`` names a FIFO made in ``cwd``: the kernel bounds what it keeps, writing never blocks the process, and
        whoever adopts the process can read it. A process is never left behind by cancellation: either it is returned
        or it was not started. Raises OSError as :class:`subprocess.Popen` does.
        """
        with CancelScope(shield=True):
            process = await to_thread.run_sync(cls._spawn, argv, cwd, stderr)
        return process

    @classmethod
    def _spawn(cls, argv: Sequence[str], cwd: Path, stderr: str) -> Process:
        fifo = cwd / stderr
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo, 0o600)
        stderr_fd = _open_fifo(fifo)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            child = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**environment, "LC_ALL": "C", MARK: str(cwd.resolve())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr_fd,
                start_new_session=True,
            )
        except BaseException:
            os.close(stderr_fd)
            raise
        try:
            # A core dump would put the guest's memory, with its secrets, on the host's disk.
            resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
            pidfd = os.pidfd_open(child.pid)
        except BaseException:
            child.kill()
            child.wait()
            os.close(stderr_fd)
            raise
        # The exit is reaped through the pidfd; Popen must neither wait for the process nor warn that it still runs.
        child.returncode = 0
        return cls(ProcessIdentity.of(child.pid), pidfd, stderr_fd)

    @classmethod
    def adopt(cls, identity: ProcessIdentity, *, cwd: Path, stderr: str) -> Process:
        """Takes over a process that :meth:`spawn` of another program (or this one) started.

        Raises ProcessLookupError if it has ended, or its pid belongs to another process by now.
        """
        pidfd = os.pidfd_open(identity.pid)
        # Checked after the pidfd exists: from here on the pid cannot come to mean another process.
        try:
            if not identity.is_alive():
                raise ProcessLookupError(f"process {identity.pid} has ended")
            stderr_fd = _open_fifo(cwd / stderr)
        except BaseException:
            os.close(pidfd)
            raise
        return cls(identity, pidfd, stderr_fd)

    async def wait(self) -> int | None:
        """Waits for the end of the process and returns :attr:`returncode`; any number of tasks may wait."""
        while not self.poll():
            # One descriptor per waiter: an event loop takes each descriptor only once.
            pidfd = os.dup(self._pidfd)
            try:
                await wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self.returncode

    def poll(self) -> bool:
        """Whether the process has ended; reaps it if it is our child."""
        if self.ended or self._pidfd < 0:
            return self.ended
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # adopted: someone else's child, whose exit status is not for us to see
            self.ended = not self.identity.is_alive()
            return self.ended
        if result is not None:
            self.ended = True
            exited = result.si_code == os.CLD_EXITED
            self.returncode = result.si_status if exited else -result.si_status
        return self.ended

    def kill(self) -> None:
        """Sends SIGKILL; does nothing if the process has ended."""
        if not self.ended and self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def read_stderr(self) -> str:
        """What the process wrote to stderr since the last call, at most the first 64 KiB of it."""
        if self._stderr < 0:
            return ""
        try:
            return os.read(self._stderr, _STDERR_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""

    def close(self) -> None:
        """Gives up the handles; the process runs on if it has not ended."""
        for descriptor in (self._pidfd, self._stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self._pidfd = self._stderr = -1


def listens_on(pid: int, name: str) -> bool:
    """Whether the process has a listening unix socket that it bound as ``name``.

    A connection attempt would tell too, but a vhost-user back-end accepts only one connection in its life.
    """
    inodes = set()
    with suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON
        _, _, _, flags, _, _, inode, *path = line.split(maxsplit=7)
        if path == [name] and inode in inodes and int(flags, 16) & 0x10000:
            return True
    return False


def _open_fifo(path: Path) -> int:
    # Read and write, so that there is always a reader and writing never fails; non-blocking, so that it never stalls.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def _read_stat(pid: int) -> tuple[str, int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # The command name in parentheses may itself hold spaces and parentheses; the state follows the last one.
    state, *fields = stat.rpartition(")")[2].split()
    return state, int(fields[18])


def _read_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
