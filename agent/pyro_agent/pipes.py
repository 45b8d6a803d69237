"""The descriptors between the agent and one command."""

from __future__ import annotations

import fcntl
import math
import os
import select
import termios
from typing import Final

import anyio

from pyro_agent.stdin import Stdin
from pyro_async.wire.guest import STDERR, STDOUT

__all__ = ["Pipes"]

#: Large, because under emulation a turn of the event loop costs as much as copying hundreds of KiB.
_READ_SIZE: Final = 1024 * 1024
_DEFAULT_CAPACITY: Final = 64 * 1024
#: A read of this size or more, a page, comes from a command that most likely goes on writing.
_BUSY_FROM: Final = 4096
#: Capacity of an output pipe once a command has filled the default one: fewer switches between it and the agent.
_LARGE_CAPACITY: Final = 1024 * 1024


class Pipes:
    """Standard streams of a command and the end of its process, gathered in one epoll instance.

    The reading ends stay in blocking mode: they are read only when epoll has announced something.

    Args:
        stdin: whether the command gets a pipe as standard input; else it reads /dev/null.

    Attributes:
        stdin: the pipe's writing end, or None.
        child_ends: what becomes the child's descriptors 0, 1 and 2.
        exited: whether the process was seen to have ended.
        paused: whether the output is left in the pipes for now.
    """

    def __init__(self, *, stdin: bool) -> None:
        self.stdin: Stdin | None = None
        self.exited = False
        self.paused = False
        self._pidfd = -1
        self._busy = False
        stdout, stdout_writer = os.pipe()
        stderr, stderr_writer = os.pipe()
        self._readers = {stdout: STDOUT, stderr: STDERR}
        self._epoll = select.epoll()
        for fd in self._readers:
            self._epoll.register(fd, select.EPOLLIN)
        if stdin:
            stdin_reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self.stdin = Stdin(writer)
        else:
            stdin_reader = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.child_ends = (stdin_reader, stdout_writer, stderr_writer)
        self._writers = [stdout_writer, stderr_writer]

    def watch(self, pid: int) -> None:
        """Waits for the end of this process too."""
        self._pidfd = os.pidfd_open(pid)
        self._epoll.register(self._pidfd, select.EPOLLIN)

    def forget_process(self) -> None:
        """Its status was collected."""
        self._epoll.unregister(self._pidfd)  # a closed one may be announced once more
        os.close(self._pidfd)
        self._pidfd = -1
        self._close_writers()

    def _close_writers(self) -> None:
        while self._writers:
            os.close(self._writers.pop())

    @property
    def open(self) -> bool:
        """Whether any process may still write output."""
        return bool(self._readers)

    async def wait(self, deadline: float = math.inf) -> bool:
        """Waits for output, its end, or the end of the process; False if the deadline (event loop's clock) passed."""
        if deadline == math.inf:
            await anyio.wait_readable(self._epoll.fileno())
            return True
        with anyio.CancelScope(deadline=deadline) as scope:
            await anyio.wait_readable(self._epoll.fileno())
        return not scope.cancelled_caught

    def read(self, room: int) -> list[tuple[int, bytes]]:
        """Returns what is there, by channel and at most ``room`` bytes; notes ends. Does not block."""
        chunks: list[tuple[int, bytes]] = []
        if self._busy:
            # A writer is interrupted as soon as the pipe is no longer empty; let it go on, and there is more to read.
            os.sched_yield()
            self._busy = False
        for fd, _ in self._epoll.poll(0):
            if fd == self._pidfd:
                self.exited = True
                continue
            size = min(room, _READ_SIZE)
            if size <= 0:
                continue
            data = os.read(fd, size)
            if not data:
                del self._readers[fd]
                os.close(fd)
                continue
            if len(data) >= _BUSY_FROM:
                self._busy = True
                if len(data) == _DEFAULT_CAPACITY:
                    self._enlarge(fd)
            room -= len(data)
            chunks.append((self._readers[fd], data))
        return chunks

    @staticmethod
    def _enlarge(fd: int) -> None:
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _LARGE_CAPACITY)
        except OSError:
            pass  # above the system's limit for this user: slower, not wrong

    def backlog(self) -> int:
        """Bytes of output written but not yet read."""
        total = 0
        for fd in self._readers:
            total += int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")
        return total

    def pause(self) -> None:
        """Leaves further output in the pipes, so that its writers block."""
        if not self.paused:
            self.paused = True
            for fd in self._readers:
                self._epoll.unregister(fd)

    def resume(self) -> None:
        """Reads on; a task in :meth:`wait` notices."""
        if self.paused:
            self.paused = False
            for fd in self._readers:
                self._epoll.register(fd, select.EPOLLIN)

    def close_child_ends(self) -> None:
        """To be called as soon as the child has them, or will never exist.

        While a process is watched we keep the outputs' writing ends too: an exit closes the process's own one by one,
        and would wake us for each.
        """
        os.close(self.child_ends[0])
        if self._pidfd < 0:
            self._close_writers()

    def close(self) -> None:
        """Closes what is still open on this side."""
        for fd in self._readers:
            os.close(fd)
        self._readers.clear()
        if self._pidfd >= 0:
            self.forget_process()
        if self.stdin is not None:
            self.stdin.close()
        self._epoll.close()
