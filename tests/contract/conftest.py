"""The same suite against every guest and every way to it.

``direct``: the in-memory guest, called in the caller's task. ``socket``: the same through a daemon's unix socket.
``vm``: real VMs, through a real daemon process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.runtime.daemon import Daemon
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from tests.support.memory_guest import MemoryDriver, MemoryImages
from tests.support.vm_home import VmHome

WAYS = ["direct", "socket", pytest.param("vm", marks=pytest.mark.vm)]


class Guest(NamedTuple):
    """Where the tests of one parameter run.

    Attributes:
        way: ``direct``, ``socket`` or ``vm``.
        home: whose daemon serves it; None if none does.
        environment: what workspaces are made of.
        connect: a client of its own.
    """

    way: str
    home: Path | None
    environment: str
    connect: Callable[[], AbstractAsyncContextManager[AsyncPyro]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Real VMs are driven from trio in a few tests only."""
    spared = [item for item in items if _is_spared(item)]
    items[:] = [item for item in items if item not in spared]
    config.hook.pytest_deselected(items=spared)


def _is_spared(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    on_trio = params.get("way") == "vm" and params.get("anyio_backend") == "trio"
    return on_trio and item.get_closest_marker("both_loops") is None


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def vm_home_or_none(way: str, request: pytest.FixtureRequest) -> VmHome | None:
    return request.getfixturevalue("vm_home") if way == "vm" else None


@pytest.fixture
async def guest(way: str, vm_home_or_none: VmHome | None, tmp_path: Path) -> AsyncIterator[Guest]:
    if vm_home_or_none is not None:
        vm_home = vm_home_or_none
        yield Guest(way, vm_home.home, "debian:12", lambda: AsyncPyro(vm_home.home))
        return
    home = tmp_path / "home"
    home.mkdir()
    async with anyio.create_task_group() as machines:
        async with Runtime(home, driver=MemoryDriver(machines), images=MemoryImages(home)) as runtime:
            if way == "direct":
                yield Guest(way, None, "debian:12", lambda: AsyncPyro(transport=DirectTransport(runtime)))
            else:
                async with anyio.create_task_group() as server:
                    await server.start(Daemon(runtime).serve)
                    yield Guest(way, home, "debian:12", lambda: AsyncPyro(home))
                    server.cancel_scope.cancel()
        machines.cancel_scope.cancel()


@pytest.fixture
async def client(guest: Guest) -> AsyncIterator[AsyncPyro]:
    async with guest.connect() as client:
        yield client


@pytest.fixture
async def workspace_created(guest: Guest, client: AsyncPyro) -> AsyncIterator[str]:
    """A workspace of the test's own, to be stopped and broken; running, as every created workspace is."""
    workspace = (await client.create_workspace(guest.environment)).workspace_id
    yield workspace
    if workspace in {other.workspace_id for other in (await client.list_workspaces()).workspaces}:
        await client.delete_workspace(workspace)


@pytest.fixture
async def workspace_stopped(client: AsyncPyro, workspace_created: str) -> str:
    await client.stop_workspace(workspace_created)
    return workspace_created


@pytest.fixture
async def workspace_running(guest: Guest, client: AsyncPyro, vm_home_or_none: VmHome | None) -> str:
    """A running workspace for tests that leave it as it was; real VMs share one, since booting takes seconds."""
    if vm_home_or_none is not None:
        return vm_home_or_none.shared_workspace
    return (await client.create_workspace(guest.environment, name="shared")).workspace_id


@pytest.fixture(scope="session")
def vm_home(pyro_home: Path) -> Iterator[VmHome]:
    with VmHome(pyro_home) as home:
        yield home
