"""What idle workspaces cost. Memory is measured in a process of its own, where nothing was freed before."""

from __future__ import annotations

import gc
import re
import sys
import time
from pathlib import Path

import anyio
import msgspec

from benchmarks.hosts import ENVIRONMENT, memory_host
from benchmarks.measure import Settings
from benchmarks.results import Row
from pyro_async import AsyncPyro
from pyro_async.operations import WorkspaceList

__all__ = ["run"]

_LIST_ROUNDS = 21


class Costs(msgspec.Struct):
    """What the measuring process reports: KiB and tasks for one workspace, milliseconds for one list."""

    workspace_kib: float
    workspace_tasks: float
    task_kib: float
    list_direct_ms: list[float]
    list_daemon_ms: list[float]
    codec_ms: list[float]


async def run(settings: Settings) -> list[Row]:
    """Memory and tasks of one workspace with its in-memory guest, and listing all of them."""
    count = settings.count(1000, 200)
    done = await anyio.run_process([sys.executable, "-m", "benchmarks.idle", str(count)], stderr=None)
    costs = msgspec.json.decode(done.stdout, type=Costs)
    tasks = f"{costs.workspace_tasks:.0f} tasks that wait"
    codec = "encoding and decoding the list"
    return [
        Row.of(f"idle workspace of {count:,}", "KiB", [costs.workspace_kib], tasks, [costs.task_kib]),
        Row.of(f"list of {count:,}, direct", "ms", costs.list_direct_ms, codec, costs.codec_ms),
        Row.of(f"list of {count:,}, daemon", "ms", costs.list_daemon_ms, codec, costs.codec_ms),
    ]


async def measure(count: int) -> Costs:
    """Creates ``count`` workspaces and measures what they cost. Their guests' agents live in this process too."""
    async with memory_host() as host:
        await host.client.create_workspace(ENVIRONMENT)
        memory, tasks = _proportional_kib(), len(anyio.get_running_tasks())
        for _ in range(count):
            await host.client.create_workspace(ENVIRONMENT)
        workspace_kib = (_proportional_kib() - memory) / count
        workspace_tasks = (len(anyio.get_running_tasks()) - tasks) / count

        direct, daemon, codec = [], [], []
        async with AsyncPyro(host.home) as remote:
            for _ in range(_LIST_ROUNDS):
                began = time.perf_counter()
                found = await host.client.list_workspaces()
                direct.append(_ms_since(began))
                began = time.perf_counter()
                await remote.list_workspaces()
                daemon.append(_ms_since(began))
                began = time.perf_counter()
                msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=WorkspaceList)
                codec.append(_ms_since(began))
        return Costs(
            workspace_kib=workspace_kib,
            workspace_tasks=workspace_tasks,
            task_kib=await _bare_tasks_kib(round(workspace_tasks * count)) / count,
            list_direct_ms=direct,
            list_daemon_ms=daemon,
            codec_ms=codec,
        )


async def _bare_tasks_kib(count: int) -> float:
    """Memory of tasks that wait for an event each."""
    before = _proportional_kib()
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(anyio.Event().wait)
        await anyio.wait_all_tasks_blocked()
        used = _proportional_kib() - before
        tasks.cancel_scope.cancel()
    return used


def _proportional_kib() -> float:
    """This process's memory, with what it shares counted in part (PSS)."""
    gc.collect()
    found = re.search(r"^Pss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(anyio.run(measure, int(sys.argv[1]))))
