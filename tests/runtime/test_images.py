"""What the runtime tells the image store."""

from __future__ import annotations

from collections.abc import Set

import pytest

from pyro_async import AsyncPyro
from pyro_async.operations import Pruned
from tests.support.memory_guest import MemoryDriver, MemoryImages


@pytest.mark.parametrize("stopped", [False, True])
async def test_pruning_spares_the_images_of_every_workspace(
    client: AsyncPyro, guests: MemoryDriver, workspace_running: str, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    spared: set[str] = set()

    async def prune(images: MemoryImages, in_use: Set[str], *, all: bool = False) -> Pruned:  # noqa: A002
        spared.update(in_use)
        return Pruned(removed=[], bytes_freed=0)

    monkeypatch.setattr(MemoryImages, "prune", prune)
    if stopped:
        await client.stop_workspace(workspace_running)
    await client.prune_environments(all=True)
    spec = guests.newest.spec
    assert {path.parent.name for path in (spec.kernel, spec.initramfs, spec.tools, spec.base)} <= spared
    await client.delete_workspace(workspace_running)
    spared.clear()
    await client.prune_environments(all=True)
    assert spared == set()
