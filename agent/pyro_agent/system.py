"""What the agent needs of the machine it runs on: the seam between the guest and the tests' stand-in for it."""

from __future__ import annotations

from typing import Protocol

from pyro_agent.accounts import Accounts
from pyro_agent.reaper import ProcessTable
from pyro_agent.spawn import Command
from pyro_async.wire.guest import Configure, StatsResult

__all__ = ["System", "Tree"]


class Tree(Protocol):
    """Holds one command's process and all its descendants, so that none escapes."""

    def spawn(self, command: Command) -> int:
        """Starts the command inside the tree; raises as :func:`pyro_agent.spawn.spawn`."""
        ...

    def kill(self) -> None:
        """Sends SIGKILL to every process of the tree, those it forks meanwhile included. Does not block."""
        ...

    async def wait_empty(self) -> None:
        """Waits until no process of the tree is alive."""
        ...

    def oom_kills(self) -> int:
        """How many processes of the tree the kernel has killed for want of memory."""
        ...

    def release(self) -> None:
        """Gives the tree back; processes left in it live on."""
        ...


class System(Protocol):
    """The machine."""

    processes: ProcessTable
    accounts: Accounts

    def configure(self, request: Configure) -> None:
        """Gives the machine its identity and root. Blocks: nothing else runs yet.

        Raises:
            PyroError: a disk is missing or damaged.
        """
        ...

    def tree(self) -> Tree:
        """A new, empty tree."""
        ...

    def disk_full(self) -> bool:
        """Whether the workspace's disk has no space left."""
        ...

    def stats(self) -> StatsResult:
        """What the machine uses at this moment."""
        ...

    async def end_processes(self, grace_seconds: float) -> None:
        """Ends every process but this one: SIGTERM, a grace period, SIGKILL; returns when they are gone."""
        ...

    def seal_disk(self) -> None:
        """Writes everything to the disk and leaves its filesystem clean. Nothing can be written after that."""
        ...

    def power_off(self) -> None:
        """Switches the machine off."""
        ...
