"""A runtime over in-memory guests whose time the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from tests.support.manual_clock import ManualClock
from tests.support.memory_guest import MemoryDriver, MemoryImages

Open = Callable[..., AbstractAsyncContextManager[AsyncPyro]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def guests() -> AsyncIterator[MemoryDriver]:
    """The machines; they outlive any runtime, as VMMs do."""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            driver = MemoryDriver(tasks)
            yield driver
            await driver.end_all()
            tasks.cancel_scope.cancel()


@pytest.fixture
def open_runtime(tmp_path: Path, guests: MemoryDriver, clock: ManualClock) -> Open:
    """Opens a runtime on the home, with a client of it; one after the other, as daemons come and go."""
    home = tmp_path / "home"
    home.mkdir()

    @asynccontextmanager
    async def open_one(**options: Any) -> AsyncIterator[AsyncPyro]:
        images: Any = MemoryImages(home)
        async with (
            Runtime(home, driver=guests, images=images, clock=clock, **options) as runtime,
            AsyncPyro(transport=DirectTransport(runtime)) as client,
        ):
            yield client

    return open_one


@pytest.fixture
async def client(open_runtime: Open) -> AsyncIterator[AsyncPyro]:
    async with open_runtime() as client:
        yield client
