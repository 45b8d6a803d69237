"""A server over a runtime of in-memory guests, and the official client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client._memory import InMemoryTransport
from mcp_types import CallToolResult, TextContent

from pyro_async import AsyncPyro
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.runtime import Runtime
from pyro_mcp_server.server import make_server
from tests.support.memory_guest import MemoryDriver, MemoryImages

Connect = Callable[[], AbstractAsyncContextManager[AsyncPyro]]


@pytest.fixture
async def guests() -> AsyncIterator[MemoryDriver]:
    async with anyio.create_task_group() as tasks:
        driver = MemoryDriver(tasks)
        yield driver
        await driver.end_all()
        tasks.cancel_scope.cancel()


@pytest.fixture
async def connect(tmp_path: Path, guests: MemoryDriver) -> AsyncIterator[Connect]:
    """Makes clients of a runtime."""
    home = tmp_path / "home"
    home.mkdir()
    async with Runtime(home, driver=guests, images=MemoryImages(home)) as runtime:
        yield lambda: AsyncPyro(home, transport=DirectTransport(runtime))


@pytest.fixture(params=["legacy", "auto"])
async def client(request: pytest.FixtureRequest, connect: Connect) -> AsyncIterator[Client]:
    """The official client, once with the handshake of older protocols and once without."""
    async with Client(InMemoryTransport(make_server(connect, "workspace-full")), mode=request.param) as client:
        yield client


@pytest.fixture
async def workspace(client: Client) -> str:
    await done(client, "workspace_create", environment="debian:12", name="demo")
    return "demo"


async def done(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Calls a tool and returns its structured content; it must not be an error."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    return dict(result.structured_content)


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text
