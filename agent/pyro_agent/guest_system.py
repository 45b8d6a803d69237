"""The real machine: the agent is PID 1 of a virtual machine."""

from __future__ import annotations

import os
import signal
from typing import Final

import anyio

from pyro_agent import identity, mounts
from pyro_agent.accounts import Accounts
from pyro_agent.cgroups import Cgroup, CgroupPool
from pyro_agent.kernel import reboot
from pyro_agent.reaper import ProcessTable
from pyro_agent.stats import read_stats
from pyro_async.errors import WrongState
from pyro_async.wire.guest import Configure, StatsResult

__all__ = ["GuestSystem"]

_CGROUPS: Final = "/sys/fs/cgroup"
_RUNTIME: Final = "/run/pyro"
#: A disk with less than this available counts as full, in bytes: the last blocks need not fit what was to be written.
_FULL_BELOW: Final = 256 * 1024
#: How long killed processes may take to vanish, in seconds; one that waits for a dead disk never does.
_KILL_GRACE: Final = 2.0


class GuestSystem:
    """See :class:`pyro_agent.system.System`."""

    def __init__(self) -> None:
        self.processes = ProcessTable()
        self.accounts = Accounts()
        self._cgroups: CgroupPool | None = None

    def configure(self, request: Configure) -> None:
        identity.set_clock(request.clock_ns)
        if self._cgroups is not None:
            return
        identity.add_entropy(request.entropy)
        identity.set_hostname(request.hostname)
        mounts.enter_root()
        mounts.mount_cgroups(_CGROUPS)
        identity.bind_identity("/etc/machine-id", f"{request.machine_id}\n", _RUNTIME)
        identity.bind_identity("/etc/hostname", f"{request.hostname}\n", _RUNTIME)
        identity.raise_loopback()
        if not os.path.isdir(request.workspace_path):
            os.makedirs(request.workspace_path)
        self._cgroups = CgroupPool(_CGROUPS)
        self._cgroups.fill()

    async def reap_forever(self) -> None:
        """Collects every orphan of the guest."""
        with anyio.open_signal_receiver(signal.SIGCHLD) as arrivals:
            self.processes.reap()
            async for _ in arrivals:
                self.processes.reap()

    def tree(self) -> Cgroup:
        if self._cgroups is None:
            raise WrongState("the guest is not configured yet")
        return self._cgroups.take()

    def disk_full(self) -> bool:
        status = os.statvfs(mounts.UPPER)
        return status.f_bavail * status.f_frsize < _FULL_BELOW or status.f_ffree == 0

    def stats(self) -> StatsResult:
        if self._cgroups is None:
            raise WrongState("the guest is not configured yet")
        return read_stats(mounts.UPPER)

    async def end_processes(self, grace_seconds: float) -> None:
        for number, grace in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, _KILL_GRACE)):
            try:
                os.kill(-1, number)  # PID 1 itself is exempt
            except ProcessLookupError:
                return
            with anyio.move_on_after(grace):
                for group in self._cgroups.populated() if self._cgroups is not None else ():
                    await group.wait_empty()

    def seal_disk(self) -> None:
        if self._cgroups is not None:
            mounts.seal()

    def power_off(self) -> None:
        os.sync()
        reboot()
