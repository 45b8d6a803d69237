"""Exit statuses of children.

A command's task is woken by its pidfd and asks here for the status. PID 1 also inherits every orphan of the guest and
must reap it; that may reap a known child first, whose status is then kept until its task asks.
"""

from __future__ import annotations

import os

__all__ = ["ProcessTable"]


class ProcessTable:
    """The children this program started and has not collected yet."""

    def __init__(self) -> None:
        self._statuses: dict[int, int | None] = {}

    def add(self, pid: int) -> None:
        """Notes a child, before control returns to the event loop: an orphan's status is thrown away."""
        self._statuses[pid] = None

    def collect(self, pid: int) -> int | None:
        """Returns a child's wait status and forgets the child; None while it runs. Does not block."""
        status = self._statuses[pid]
        if status is None:
            found, raw = os.waitpid(pid, os.WNOHANG)
            if not found:
                return None
            status = raw
        del self._statuses[pid]
        return status

    def ended(self, pid: int) -> bool:
        """Whether a child has ended; its status stays to be collected."""
        if self._statuses[pid] is not None:
            return True
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self) -> None:
        """Takes away all zombies; only for PID 1, whose children are not all its own."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._statuses:
                self._statuses[pid] = status
