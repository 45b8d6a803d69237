"""The official client, ``pyro mcp serve``, a daemon and a real VM: what only all of them together can show."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from pyro_async.transport import stop_daemon
from tests.mcp.conftest import done, text_of

pytestmark = pytest.mark.vm

#: Seconds; a build of the environment may be part of it.
PATIENCE = 600


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(pyro_home: Path) -> AsyncIterator[Client]:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYRO_HOME": str(pyro_home), "PATH": os.environ["PATH"]}
    command = ["-m", "pyro_cli", "mcp", "serve", "--profile", "workspace-full"]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=environment)
    async with Client(stdio_client(parameters)) as client:
        yield client
    await stop_daemon(pyro_home, all=True)


async def test_a_task_from_create_to_delete(client: Client) -> None:
    told = ""

    async def take(progress: float, total: float | None, message: str | None) -> None:
        nonlocal told
        told += message or ""

    with anyio.fail_after(PATIENCE):
        await client.call_tool("workspace_create", {"environment": "debian:12", "name": "task"}, progress_callback=take)
        assert "boot" in told
        await done(client, "workspace_exec", workspace="task", command="cat > sum.py", stdin="print(sum(range(10)))\n")
        result = await client.call_tool(
            "workspace_exec", {"workspace": "task", "command": ["python3", "sum.py"]}, progress_callback=take
        )
        assert text_of(result).endswith("--- stdout\n45")
        assert "45\n" in told

        with anyio.move_on_after(1):
            command = "trap '' TERM; setsid sleep 1000 & exec sleep 1000"
            await client.call_tool("workspace_exec", {"workspace": "task", "command": command})
        left = await done(client, "workspace_exec", workspace="task", command="pgrep -c sleep || true")
        assert left["stdout"] == "0\n"
        assert (await done(client, "workspace_logs", workspace="task"))["entries"][-2]["cancelled"]
        await done(client, "workspace_delete", workspace="task")
