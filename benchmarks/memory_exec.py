"""What pyro itself costs around a command: exec of ``true`` in an in-memory guest, beside starting ``true`` alone."""

from __future__ import annotations

import os
import shutil
import subprocess

from benchmarks.hosts import ENVIRONMENT, memory_host, remote_exec
from benchmarks.measure import Settings, alternate, timed
from benchmarks.results import Row, at_most

__all__ = ["run"]

_MS = 1e3


async def run(settings: Settings) -> list[Row]:
    """Round trips, direct and through the daemon's socket, and what is left of the direct one without the process."""
    async with memory_host() as host:
        workspace = (await host.client.create_workspace(ENVIRONMENT)).workspace_id
        program = shutil.which("true") or "true"

        async def direct() -> None:
            await host.client.exec_workspace(workspace, ["true"], cwd="/")

        async def popen() -> None:
            subprocess.run([program], check=True)

        async def spawn() -> None:
            _spawn_and_wait(program)

        async with remote_exec(host.home, workspace) as remote:

            async def daemon() -> float:
                return await remote() * _MS

            samples = await alternate(
                settings.count(400, 100),
                warm_up=20,
                direct=timed(direct, _MS),
                daemon=daemon,
                popen=timed(popen, _MS),
                spawn=timed(spawn, _MS),
            )
    own = [each - alone for each, alone in zip(samples["direct"], samples["spawn"], strict=True)]
    extra = [each - near for each, near in zip(samples["daemon"], samples["direct"], strict=True)]
    alone = "subprocess.run of true"
    return [
        Row.of("exec true, in memory", "ms", samples["direct"], alone, samples["popen"], at_most(0.5, "figure")),
        Row.of("… through the daemon", "ms", samples["daemon"], alone, samples["popen"], at_most(1.0, "figure")),
        Row.of("… less the bare process", "ms", own, "posix_spawn and wait of true", samples["spawn"]),
        Row.of("… daemon less direct", "ms", extra, "posix_spawn and wait of true", samples["spawn"]),
    ]


def _spawn_and_wait(program: str) -> None:
    os.waitpid(os.posix_spawn(program, [program], os.environ), 0)
