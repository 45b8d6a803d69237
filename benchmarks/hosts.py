"""What benchmarks measure: a runtime that serves its daemon's socket too, and a client of that in another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, cast

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from benchmarks.measure import Contender
from pyro_async import AsyncPyro
from pyro_async.groups import plain_task_group
from pyro_async.images.store import ImageStore
from pyro_async.runtime.admission import Limits
from pyro_async.runtime.daemon import Daemon
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from tests.support.memory_guest import MemoryDriver, MemoryImages

__all__ = ["ENVIRONMENT", "Host", "memory_host", "remote_exec", "serving"]

ENVIRONMENT = "debian:12"


class Host(NamedTuple):
    """A runtime in this process: ``client`` calls it directly, others reach it through the socket in ``home``."""

    home: Path
    client: AsyncPyro


@asynccontextmanager
async def memory_host() -> AsyncIterator[Host]:
    """Runs in-memory guests: the real agent, its commands processes of this machine."""
    async with anyio.TemporaryDirectory(prefix="pyro-bench-") as name, anyio.create_task_group() as agents:
        home = Path(name)
        images = cast("ImageStore", MemoryImages(home))
        limits = Limits(memory_mib=1 << 40, boots=1 << 20)  # these guests need neither memory nor a boot
        async with serving(Runtime(home, driver=MemoryDriver(agents), images=images, limits=limits)) as host:
            yield host
        agents.cancel_scope.cancel()


@asynccontextmanager
async def serving(runtime: Runtime) -> AsyncIterator[Host]:
    """Enters a runtime and serves its socket as the daemon does."""
    async with runtime, plain_task_group() as tasks:
        daemon = Daemon(runtime)
        await tasks.start(daemon.serve)
        async with AsyncPyro(transport=DirectTransport(runtime)) as client:
            yield Host(runtime.home.root, client)
        daemon.stop()


@asynccontextmanager
async def remote_exec(home: Path, workspace: str) -> AsyncIterator[Contender]:
    """Runs ``true`` through the daemon, from a client in a process of its own; samples are seconds."""
    command = [sys.executable, "-m", "benchmarks.remote_client", str(home), workspace]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, BufferedByteReceiveStream(process.stdout)

        async def contend() -> float:
            await stdin.send(b"\n")
            return float(await stdout.receive_until(b"\n", 64))

        yield contend
        await stdin.aclose()
        await process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
