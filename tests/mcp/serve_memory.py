"""``pyro mcp serve`` as a process of its own, with a runtime of in-memory guests instead of the daemon.

``python -m tests.mcp.serve_memory HOME ARGUMENTS``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from pyro_cli.invocation import invoke
from tests.support.memory_guest import MemoryDriver, MemoryImages


async def main() -> int:
    home = Path(sys.argv[1])
    async with anyio.create_task_group() as tasks:
        driver = MemoryDriver(tasks)
        async with Runtime(home, driver=driver, images=MemoryImages(home)) as runtime:
            status = await invoke(["mcp", "serve", *sys.argv[2:]], transport=DirectTransport(runtime))
        await driver.end_all()
        tasks.cancel_scope.cancel()
    return status


if __name__ == "__main__":
    os._exit(anyio.run(main))
