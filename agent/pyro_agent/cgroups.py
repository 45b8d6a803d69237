"""One control group (version 2) per command.

The agent enters the command's group, starts it and returns to its own. Between the two it does not await, so nothing
else is started there; and the child is in its group from its first instruction on, so nothing it forks escapes. The
alternatives are worse: moving the child after its start races with its forks, and clone3 with CLONE_INTO_CGROUP
cannot be had without copying the agent's memory.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Final

import anyio

from pyro_agent.spawn import Command, spawn

__all__ = ["Cgroup", "CgroupPool"]

#: Empty groups kept at hand, since making and removing them takes longer than running a short command.
_READY: Final = 8


class Cgroup:
    """A control group that holds one command at a time."""

    def __init__(self, pool: CgroupPool, path: str) -> None:
        self._pool = pool
        self._path = path
        os.mkdir(path)
        self._procs = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        self._events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._memory = os.open(f"{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._memory = -1  # the kernel has no memory controller
        self._earlier_oom_kills = 0

    def spawn(self, command: Command) -> int:
        os.write(self._procs, b"0")
        try:
            return spawn(command)
        finally:
            self._pool.return_home()

    def kill(self) -> None:
        fd = os.open(f"{self._path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)

    @property
    def populated(self) -> bool:
        """Whether a process lives in the group or below it; zombies do not count."""
        return b"populated 1" in os.pread(self._events, 256, 0)

    async def wait_empty(self) -> None:
        # The file is always "readable"; a change shows as exceptional condition, which only epoll can wait for.
        with select.epoll() as epoll:
            epoll.register(self._events, select.EPOLLPRI)
            while self.populated:
                await anyio.wait_readable(epoll.fileno())

    def oom_kills(self) -> int:
        return self._count_oom_kills() - self._earlier_oom_kills

    def _count_oom_kills(self) -> int:
        if self._memory < 0:
            return 0
        for line in os.pread(self._memory, 1024, 0).splitlines():
            name, _, value = line.partition(b" ")
            if name == b"oom_kill":
                return int(value)
        return 0

    def release(self) -> None:
        self._pool.take_back(self)

    def renew(self) -> None:
        """Prepares an empty group for the next command."""
        self._earlier_oom_kills = self._count_oom_kills()

    def remove(self) -> None:
        """Removes the empty group."""
        for fd in (self._procs, self._events, self._memory):
            if fd >= 0:
                os.close(fd)
        os.rmdir(self._path)


class CgroupPool:
    """All groups of commands.

    Args:
        root: a cgroup2 directory; its own group is where the agent stays.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        with suppress(OSError), open(f"{root}/cgroup.subtree_control", "w") as control:
            control.write("+memory")  # without it, running out of memory is not told apart from any other SIGKILL
        self._home = os.open(f"{root}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        self._made = 0
        self._ready: list[Cgroup] = []
        self._left: list[Cgroup] = []  # given back while background processes still lived in them
        self._used: set[Cgroup] = set()

    def fill(self) -> None:
        """Makes ready groups in advance."""
        while len(self._ready) < _READY:
            self._ready.append(self._make())

    def take(self) -> Cgroup:
        """Returns an empty group; its ``release`` gives it back."""
        if not self._ready:
            self._sort_out()
        group = self._ready.pop() if self._ready else self._make()
        self._used.add(group)
        return group

    def take_back(self, group: Cgroup) -> None:
        """Receives a group whose command has ended."""
        self._used.discard(group)
        if group.populated:
            self._left.append(group)
        else:
            self._settle(group)

    def return_home(self) -> None:
        """Moves the agent back into its own group."""
        os.write(self._home, b"0")

    def populated(self) -> list[Cgroup]:
        """The groups in which processes live."""
        return [group for group in (*self._used, *self._left) if group.populated]

    def _make(self) -> Cgroup:
        self._made += 1
        return Cgroup(self, f"{self._root}/exec-{self._made}")

    def _sort_out(self) -> None:
        left, self._left = self._left, []
        for group in left:
            if group.populated:
                self._left.append(group)
            else:
                self._settle(group)

    def _settle(self, group: Cgroup) -> None:
        if len(self._ready) < _READY:
            group.renew()
            self._ready.append(group)
            return
        with suppress(OSError):  # a command has made groups of its own in it: it stays, and is not used again
            group.remove()
