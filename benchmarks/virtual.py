"""Real virtual machines to measure: images of the user's own home, workspaces in a directory that goes afterwards."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio

from benchmarks.bare import BARE_COMMAND, BareLink, BesideAgent
from benchmarks.hosts import ENVIRONMENT, Host, serving
from pyro_async.home import Home, default_home
from pyro_async.images.store import ImageStore
from pyro_async.operations import Progress
from pyro_async.runtime.runtime import Runtime
from pyro_async.vmm.probe import select_driver
from pyro_async.vmm.qemu import QemuDriver

__all__ = ["Beside", "VirtualHost", "beside_bare_agent", "virtual_host"]


class VirtualHost(NamedTuple):
    """A runtime with real guests, and the images its machines are made from."""

    host: Host
    images: ImageStore


class Beside(NamedTuple):
    """A running workspace that also has a bare agent, on a channel of the same kind."""

    host: Host
    workspace: str
    bare: BareLink


@asynccontextmanager
async def virtual_host() -> AsyncIterator[VirtualHost]:
    """Runs QEMU with whatever acceleration works here; makes missing images first.

    Raises:
        PyroError: no virtual machine runs on this host, or its images cannot be made.
    """
    images = ImageStore(Home(default_home()).root)
    guest = await images.ensure_guest(_say)
    await images.ensure_environment(ENVIRONMENT, _say)
    candidates = [QemuDriver("kvm", channel=BesideAgent), QemuDriver("tcg", channel=BesideAgent)]
    driver = await select_driver(candidates, guest.kernel, images.home / "probes.json")
    async with (
        anyio.TemporaryDirectory(prefix="pyro-bench-") as name,
        serving(Runtime(Path(name), driver=driver, images=images)) as host,
    ):
        yield VirtualHost(host, images)


@asynccontextmanager
async def beside_bare_agent() -> AsyncIterator[Beside]:
    """Boots one workspace and starts the bare agent in it, on the same Python as pyro's."""
    async with virtual_host() as (host, _):
        workspace = (await host.client.create_workspace(ENVIRONMENT)).workspace_id
        bare = BareLink(Home(host.home).workspace(workspace) / "vm" / BesideAgent.bare_socket)
        async with host.client.stream_exec(workspace, BARE_COMMAND, cwd="/") as events:
            await anext(events)
            await anyio.to_thread.run_sync(bare.run, "true")
            yield Beside(host, workspace, bare)
            bare.close()
        await host.client.delete_workspace(workspace)


def _say(step: Progress) -> None:
    print(f"  {step.phase}: {step.detail}", file=sys.stderr, flush=True)
