"""How long a person waits for ``pyro workspace list``, the daemon being up."""

from __future__ import annotations

import sys

import anyio

from benchmarks.hosts import ENVIRONMENT, memory_host
from benchmarks.measure import Settings, alternate, timed
from benchmarks.results import Row, at_most

__all__ = ["run"]

_MS = 1e3
#: What the console script does.
_PYRO = (sys.executable, "-c", "from pyro_cli.main import main; main()")
#: What `pyro workspace list` cannot do without: an event loop, a command line, an encoding.
_LIBRARIES = "import anyio, anyio._backends._asyncio, asyncclick, msgspec.msgpack"


async def run(settings: Settings) -> list[Row]:
    """The whole command against a Python that only imports the same libraries."""
    async with memory_host() as host:
        for _ in range(3):
            await host.client.create_workspace(ENVIRONMENT)

        async def listing() -> None:
            await anyio.run_process([*_PYRO, "--home", str(host.home), "workspace", "list"])

        async def libraries() -> None:
            await anyio.run_process([sys.executable, "-c", _LIBRARIES])

        samples = await alternate(settings.count(25, 9), listing=timed(listing, _MS), libraries=timed(libraries, _MS))
    name = "python that imports its libraries"
    return [
        Row.of("pyro workspace list", "ms", samples["listing"], name, samples["libraries"], at_most(2.0)),
    ]
