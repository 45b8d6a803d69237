"""What a running workspace uses: the guest's own account beside the host's."""

from __future__ import annotations

from pathlib import Path

import anyio

from pyro_async.groups import plain_task_group
from pyro_async.operations import GuestResources, Resources, VmmResources
from pyro_async.runtime.clock import Clock
from pyro_async.runtime.workspace import Workspace
from pyro_async.vmm.process import ProcessIdentity
from pyro_async.vmm.usage import process_usage
from pyro_async.wire.guest import StatsResult

__all__ = ["resources"]


async def resources(workspace: Workspace, clock: Clock) -> Resources | None:
    """The figures of this moment, or None if the workspace does not run; never fails and takes two seconds at most."""
    record = workspace.record
    if record.machine is None or record.spec is None or not workspace.has_machine:
        return None
    answers: list[StatsResult | None] = []

    async def ask() -> None:
        answers.append(await workspace.stats())

    async with plain_task_group() as tasks:
        tasks.start_soon(ask, name="stats")
        measured_at = clock.time()
        vmm, allocated = await anyio.to_thread.run_sync(_host_side, record.machine, record.spec.upper)
    guest = answers[0]
    return Resources(
        measured_at=measured_at,
        guest=None if guest is None else _guest(guest),
        vmm=vmm,
        disk_allocated_bytes=allocated,
        running_commands=workspace.commands.running_count,
    )


def _host_side(machine: ProcessIdentity, disk: Path) -> tuple[VmmResources | None, int]:
    usage = process_usage(machine)
    vmm = usage and VmmResources(
        pid=machine.pid, rss_bytes=usage.rss, pss_bytes=usage.pss, cpu_seconds=usage.cpu_seconds
    )
    try:
        return vmm, disk.stat().st_blocks * 512
    except FileNotFoundError:  # it was deleted meanwhile
        return vmm, 0


def _guest(stats: StatsResult) -> GuestResources:
    return GuestResources(
        uptime_seconds=stats.uptime_seconds,
        cpu_seconds=stats.cpu_seconds,
        mem_total_bytes=stats.mem_total,
        mem_available_bytes=stats.mem_available,
        disk_total_bytes=stats.disk_total,
        disk_free_bytes=stats.disk_free,
        process_count=stats.process_count,
    )
