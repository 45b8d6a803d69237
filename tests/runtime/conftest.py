"""A runtime over in-memory guests. The ladder of states: a home, a runtime on it, a workspace running in that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from tests.support.memory_guest import MemoryDriver, MemoryImages

Open = Callable[..., AbstractAsyncContextManager[AsyncPyro]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
async def guests() -> AsyncIterator[MemoryDriver]:
    """The machines; they outlive any runtime, as VMMs do."""
    async with anyio.create_task_group() as tasks:
        driver = MemoryDriver(tasks)
        yield driver
        await driver.end_all()
        tasks.cancel_scope.cancel()


@pytest.fixture
def open_runtime(home: Path, guests: MemoryDriver) -> Open:
    """Opens a runtime on the home, with a client of it; one after the other, as daemons come and go."""

    @asynccontextmanager
    async def open_one(home: Path = home, *, leave_running: bool = False) -> AsyncIterator[AsyncPyro]:
        home.mkdir(exist_ok=True)
        runtime = Runtime(home, driver=guests, images=MemoryImages(home), leave_running=leave_running)
        async with runtime, AsyncPyro(transport=DirectTransport(runtime)) as client:
            yield client

    return open_one


@pytest.fixture
async def client(open_runtime: Open) -> AsyncIterator[AsyncPyro]:
    async with open_runtime() as client:
        yield client


@pytest.fixture
async def workspace_running(client: AsyncPyro) -> str:
    return (await client.create_workspace("debian:12", name="ws")).workspace_id
