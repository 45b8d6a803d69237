"""From nothing to the end of a workspace's first command, against QEMU started by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anyio
from anyio import to_thread

from benchmarks.bare import bare_initramfs, command_line_of, first_exec_by_hand
from benchmarks.hosts import ENVIRONMENT
from benchmarks.measure import Settings, alternate
from benchmarks.results import Row
from benchmarks.virtual import virtual_host
from pyro_async.home import Home
from pyro_async.images.sparse import clone_file

__all__ = ["run"]


async def run(settings: Settings) -> list[Row]:
    """Seconds for create and exec, without templates; by hand with the same arguments, images and guest Python."""
    async with virtual_host() as (host, images), anyio.TemporaryDirectory(prefix="pyro-hand-") as name:
        directory = Path(name)
        initramfs, upper = directory / "initramfs.cpio", directory / "upper.ext4"
        (directory / "vm").mkdir()
        guest = await images.ensure_guest()
        initramfs.write_bytes(bare_initramfs(guest.initramfs))
        command: list[str] = []

        async def pyro() -> float:
            began = anyio.current_time()
            workspace = (await host.client.create_workspace(ENVIRONMENT)).workspace_id
            await host.client.exec_workspace(workspace, ["true"])
            seconds = anyio.current_time() - began
            own = Home(host.home).workspace(workspace)
            changes = {
                str(own / "upper.ext4"): str(upper),
                str(guest.initramfs): str(initramfs),
                "wait=on": "wait=off",  # no client comes for the console
            }
            command[:] = [_replaced(argument, changes) for argument in command_line_of(own / "vm")]
            await host.client.delete_workspace(workspace)
            return seconds

        async def by_hand() -> float:
            upper.unlink(missing_ok=True)
            await to_thread.run_sync(clone_file, images.upper_template(), upper)
            return await to_thread.run_sync(first_exec_by_hand, command, directory / "vm")

        samples = await alternate(settings.count(5, 2), pyro=pyro, by_hand=by_hand)
    name = "the same QEMU by hand, bare agent"
    return [Row.of("create and exec true", "s", samples["pyro"], name, samples["by_hand"])]


def _replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text
