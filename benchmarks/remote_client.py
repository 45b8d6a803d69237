"""A client in a process of its own: runs ``true`` for every line it reads and answers with the seconds that took."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import anyio

from pyro_async import AsyncPyro


async def serve(home: Path, workspace: str) -> None:
    """Serves until standard input ends."""
    async with AsyncPyro(home) as client:
        async for _ in anyio.wrap_file(sys.stdin):
            began = time.perf_counter()
            await client.exec_workspace(workspace, ["true"], cwd="/")
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    anyio.run(serve, Path(sys.argv[1]), sys.argv[2])
