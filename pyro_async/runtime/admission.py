"""Which VM may boot when: first come, first served, a few at a time, and only while the host's memory lasts.

What decides is plain code (:class:`BootQueue`, :func:`check_memory`); :class:`Admission` waits and reports.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Self

import anyio
import msgspec

from pyro_async.errors import HostMemoryFull, InvalidArgument
from pyro_async.images.progress import Report
from pyro_async.operations import Progress

__all__ = ["MEMORY_VARIABLE", "Admission", "BootQueue", "Limits", "MemoryUse", "check_memory"]

#: Environment variable that sets the limit for all VMs together, in MiB.
MEMORY_VARIABLE: Final = "PYRO_MAX_VM_MEMORY_MIB"
#: Host memory a VM takes beyond its guest's: the VMM itself and, where the CPU is emulated, its translated code.
OVERHEAD_MIB: Final = 160
#: What is left to the host by default: this part of its memory, but at least so much.
_RESERVE_FRACTION: Final = 0.1
_RESERVE_MIB: Final = 512


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the host can bear.

    Attributes:
        memory_mib: for all VMs together, overhead included.
        boots: VMs that may be starting at the same time.
    """

    memory_mib: int
    boots: int

    @classmethod
    def of_host(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """As this host has it: a boot for every CPU, and all memory but a reserve, or ``PYRO_MAX_VM_MEMORY_MIB``.

        Raises:
            InvalidArgument: the variable is set and is not a positive number.
        """
        return cls(memory_mib=_memory_limit(environ), boots=max(1, len(os.sched_getaffinity(0))))


def _memory_limit(environ: Mapping[str, str]) -> int:
    if text := environ.get(MEMORY_VARIABLE):
        if not text.isdecimal() or not int(text):
            raise InvalidArgument(
                f"{MEMORY_VARIABLE} is {text!r}", hint="set it to a whole number of MiB, or unset it for the default"
            )
        return int(text)
    kib = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:")
    )
    total = kib >> 10
    return max(0, total - max(_RESERVE_MIB, round(total * _RESERVE_FRACTION)))


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one VM takes of the limit.

    Attributes:
        workspace_id: whose VM it is.
        label: how messages call the workspace.
        mem_mib: memory of the guest.
        quiet_seconds: for how long nothing has used the workspace; 0 if something does.
    """

    workspace_id: str
    label: str
    mem_mib: int
    quiet_seconds: float = 0.0

    @property
    def total_mib(self) -> int:
        return self.mem_mib + OVERHEAD_MIB


def check_memory(wanted: MemoryUse, running: Iterable[MemoryUse], limit_mib: int) -> None:
    """Decides whether a VM fits beside those that run.

    Raises:
        HostMemoryFull: it does not. The hint names the workspaces whose end would make room, the longest unused first.
    """
    others = [use for use in running if use.workspace_id != wanted.workspace_id]
    taken = sum(use.total_mib for use in others)
    missing = taken + wanted.total_mib - limit_mib
    if missing <= 0:
        return
    if wanted.total_mib > limit_mib:
        raise HostMemoryFull(
            f"a VM of {wanted.mem_mib} MiB needs {wanted.total_mib} MiB of the host's memory, "
            f"of which VMs may have {limit_mib} MiB",
            hint=_ask_for_less(limit_mib - OVERHEAD_MIB),
        )
    chosen, freed = [], 0
    for use in sorted(others, key=lambda use: (-use.quiet_seconds, -use.mem_mib)):
        if freed < missing:
            chosen.append(use.label)
            freed += use.total_mib
    raise HostMemoryFull(
        f"a VM of {wanted.mem_mib} MiB does not fit: {len(others)} running take {taken} MiB "
        f"of the {limit_mib} MiB that VMs may have, {missing} MiB are missing",
        hint=f"stop or delete {_listed(chosen)} to free {freed} MiB, or raise {MEMORY_VARIABLE} of the daemon",
    )


def _ask_for_less(room_mib: int) -> str:
    raise_it = f"raise {MEMORY_VARIABLE} of the daemon"
    return f"ask for at most {room_mib} MiB, or {raise_it}" if room_mib >= 128 else raise_it


def _listed(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


class Ticket:
    """One boot's place in the queue."""


class BootQueue:
    """Who may boot: at most ``slots`` at once, the others in the order in which they came."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._booting: set[Ticket] = set()
        self._waiting: deque[Ticket] = deque()

    def join(self) -> Ticket:
        """Queues up; the boot may begin at once if nobody waits and a slot is free."""
        ticket = Ticket()
        self._waiting.append(ticket)
        self._promote()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Gives the slot, or the place in the queue, to the next."""
        if ticket in self._booting:
            self._booting.remove(ticket)
        else:
            self._waiting.remove(ticket)
        self._promote()

    def ahead(self, ticket: Ticket) -> int:
        """How many boots must end or begin before this one may begin; 0 if it may."""
        return 0 if ticket in self._booting else len(self._booting) + self._waiting.index(ticket)

    def __len__(self) -> int:
        return len(self._booting) + len(self._waiting)

    def _promote(self) -> None:
        while self._waiting and len(self._booting) < self._slots:
            self._booting.add(self._waiting.popleft())


class Admission:
    """The gate every boot passes.

    Args:
        limits: what the host can bear.
        running: what the VMs that run at this moment take, those that end included.
    """

    def __init__(self, limits: Limits, running: Callable[[], Iterable[MemoryUse]]) -> None:
        self._limits = limits
        self._running = running
        self._queue = BootQueue(limits.boots)
        self._admitted: dict[str, MemoryUse] = {}
        self._changed = anyio.Event()

    @asynccontextmanager
    async def boot(self, wanted: MemoryUse, report: Report) -> AsyncIterator[None]:
        """Waits for this boot's turn; the boot happens inside the context.

        Raises:
            HostMemoryFull: when the turn came there was no memory for it.
        """
        ticket = self._queue.join()
        try:
            while ahead := self._queue.ahead(ticket):
                report(Progress(phase="queue", detail=f"waiting for {ahead} other{'s' if ahead > 1 else ''}"))
                await self._changed.wait()
            with self._reserved(wanted):
                yield
        finally:
            self._queue.leave(ticket)
            self._changed.set()
            self._changed = anyio.Event()

    @contextmanager
    def _reserved(self, wanted: MemoryUse) -> Iterator[None]:
        """Counts a VM that does not run yet; once it runs it counts by itself, so that nothing can leak."""
        taken = self._admitted | {use.workspace_id: use for use in self._running()}
        check_memory(wanted, taken.values(), self._limits.memory_mib)
        self._admitted[wanted.workspace_id] = wanted
        try:
            yield
        finally:
            self._admitted.pop(wanted.workspace_id, None)
