"""A stand-in for the guest: the agent's commands run as processes of the host.

A tree is marked by a variable in its processes' environment, because nothing else follows a descendant that has
double-forked into a session of its own without root or control groups.
"""

from __future__ import annotations

import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path

import anyio
from msgspec import structs

from pyro_agent.accounts import Accounts
from pyro_agent.reaper import ProcessTable
from pyro_agent.spawn import Command, spawn
from pyro_agent.stats import read_stats
from pyro_async.wire.guest import Configure, StatsResult

__all__ = ["HostSystem", "HostTree"]

_MARK = "PYRO_TEST_TREE"


class HostTree:
    """The processes that carry one mark."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._main = -1

    def spawn(self, command: Command) -> int:
        pid = spawn(command._replace(environment={**command.environment, _MARK: self._mark}))
        self._main = os.pidfd_open(pid)
        return pid

    def pids(self) -> list[int]:
        """Processes of the tree that are not zombies."""
        wanted = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        found.append(int(entry))
                except OSError:
                    continue
        return found

    def kill(self) -> None:
        # A process in the middle of its exec shows no environment: so the first is found otherwise, the rest by looking
        # again, as is what was forked meanwhile.
        if self._main >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._main, signal.SIGKILL)
        empty = 0
        while empty < 2:
            pids = self.pids()
            empty = 0 if pids else empty + 1
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def wait_empty(self) -> None:
        while self.pids():  # noqa: ASYNC110 - nothing announces the end of a process that is no child
            await anyio.sleep(0.001)

    def oom_kills(self) -> int:
        return 0

    def release(self) -> None:
        if self._main >= 0:
            os.close(self._main)
            self._main = -1


class HostSystem:
    """The machine the tests run on.

    Attributes:
        configured: the requests received.
        full: what :meth:`disk_full` says.
        cpu_seconds: what :meth:`stats` says of the CPU.
        sealed: whether the disk was sealed.
        powered_off: set when the agent switches the machine off.
    """

    def __init__(self) -> None:
        self.processes = ProcessTable()
        self.accounts = Accounts()
        self.configured: list[Configure] = []
        self.full = False
        self.cpu_seconds = 0.0
        self.sealed = False
        self.powered_off = anyio.Event()
        self._trees: list[HostTree] = []

    def configure(self, request: Configure) -> None:
        self.configured.append(request)

    def tree(self) -> HostTree:
        tree = HostTree()
        self._trees.append(tree)
        return tree

    def disk_full(self) -> bool:
        return self.full

    def stats(self) -> StatsResult:
        return structs.replace(read_stats("/"), cpu_seconds=self.cpu_seconds)

    async def end_processes(self, grace_seconds: float) -> None:
        for tree in self._trees:
            for pid in tree.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        with anyio.move_on_after(grace_seconds):
            for tree in self._trees:
                await tree.wait_empty()
        for tree in self._trees:
            tree.kill()

    def seal_disk(self) -> None:
        self.sealed = True

    def power_off(self) -> None:
        self.powered_off.set()
