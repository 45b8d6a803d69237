"""Exec of ``true`` in a real guest, against a bare blocking agent in that guest, on the same kind of channel."""

from __future__ import annotations

from benchmarks.hosts import remote_exec
from benchmarks.measure import Settings, alternate, timed
from benchmarks.results import Row, at_most
from benchmarks.virtual import beside_bare_agent

__all__ = ["run"]

_MS = 1e3


async def run(settings: Settings) -> list[Row]:
    """Round trips of the runtime in this process, and through the daemon's socket from another process."""
    async with beside_bare_agent() as (host, workspace, link), remote_exec(host.home, workspace) as remote:

        async def direct() -> None:
            await host.client.exec_workspace(workspace, ["true"], cwd="/")

        async def daemon() -> float:
            return await remote() * _MS

        async def bare() -> None:
            link.run("true")  # blocks everything else, as bare as it is

        samples = await alternate(
            settings.count(150, 50), warm_up=10, direct=timed(direct, _MS), daemon=daemon, bare=timed(bare, _MS)
        )
    name = "bare blocking agent"
    return [
        Row.of("exec true, embedded", "ms", samples["direct"], name, samples["bare"], at_most(1.0)),
        Row.of("exec true, through the daemon", "ms", samples["daemon"], name, samples["bare"], at_most(1.0)),
    ]
