"""The stdio transport: lines in memory, and ``pyro mcp serve`` as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import asyncclick as click
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from pyro_cli.mcp import serve
from pyro_mcp_server import stdio
from pyro_mcp_server.guides import DEFAULT_PROFILE, PROFILES
from pyro_mcp_server.server import make_server
from tests.mcp.conftest import Connect, done
from tests.mcp.test_server import alive, until

PATIENCE = 30
ROOT = Path(__file__).resolve().parents[2]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


class Peer:
    """The client's side of a server in this process."""

    def __init__(self) -> None:
        self.send, self._source = anyio.create_memory_object_stream[bytes](100)
        self._sink, self._receive = anyio.create_memory_object_stream[bytes](0)
        self.broken = False

    async def serve(self, connect: Connect) -> None:
        with self._source, self._sink:
            await stdio.serve_lines(make_server(connect, "workspace-full"), self._source, self._write)

    async def _write(self, data: bytes) -> None:
        if self.broken:
            raise BrokenPipeError
        await self._sink.send(data)

    async def answer(self) -> dict[str, Any]:
        return dict(json.loads(await self._receive.receive()))

    def close(self) -> None:
        self.send.close()
        self._receive.close()


@pytest.fixture
async def peer(connect: Connect) -> AsyncIterator[Peer]:
    peer = Peer()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.serve, connect)
            yield peer
            peer.close()


@pytest.fixture
async def greeted(peer: Peer) -> Peer:
    await peer.send.send(line(INITIALIZE) + line(INITIALIZED))
    assert (await peer.answer())["result"]["serverInfo"]["name"] == "pyro"
    return peer


async def test_messages_come_in_any_pieces(peer: Peer) -> None:
    data = line(INITIALIZE) + b"\n" + line(INITIALIZED) + line({"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
    for index in range(0, len(data), 7):
        await peer.send.send(data[index : index + 7])
    assert (await peer.answer())["id"] == 1
    assert {tool["name"] for tool in (await peer.answer())["result"]["tools"]} == PROFILES["workspace-full"].tools


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b'"text"', -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "x"}', -32600),
    ],
)
async def test_a_line_that_is_no_message_is_answered_and_forgotten(greeted: Peer, sent: bytes, code: int) -> None:
    await greeted.send.send(sent + b"\n")
    answer = await greeted.answer()
    assert (answer["id"], answer["error"]["code"]) == (None, code)
    await greeted.send.send(line(call(3, "workspace_list")))
    assert (await greeted.answer())["result"]["structuredContent"] == {"workspaces": []}


async def test_arguments_that_are_no_object_are_refused(greeted: Peer) -> None:
    message = call(3, "workspace_list")
    message["params"]["arguments"] = [1]
    await greeted.send.send(line(message))
    assert (await greeted.answer())["error"]["code"] == -32602


async def test_a_message_without_an_end_ends_the_client(greeted: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "MESSAGE_LIMIT", 1000)
    await greeted.send.send(b"x" * 2000)
    with pytest.raises(anyio.EndOfStream):
        await greeted.answer()


async def test_a_client_that_reads_no_more_leaves_nothing_running(greeted: Peer, tmp_path: Path) -> None:
    await greeted.send.send(line(call(2, "workspace_create", environment="debian:12", name="demo")))
    assert not (await greeted.answer())["result"]["isError"]
    pids = tmp_path / "pids"
    command = f"echo $$ > {pids}.new; mv {pids}.new {pids}; sleep 1000"
    await greeted.send.send(line(call(3, "workspace_exec", workspace="demo", command=command)))
    await until(pids.exists)
    greeted.broken = True
    await greeted.send.send(line(call(4, "workspace_list")))
    await until(lambda: not alive(int(pids.read_text())))


async def test_a_client_that_never_reads_does_not_keep_the_server(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "_FAREWELL", 0.1)
    await peer.send.send(line(INITIALIZE) + line(INITIALIZED) + line(call(2, "workspace_list")))
    await peer.send.send(line(call(3, "env_list")))
    peer.send.close()
    with peer._receive.clone():  # it stays open, unread
        await until(lambda: peer._sink.statistics().open_send_streams == 0)


# --- as a process -----------------------------------------------------------------------------------------------------


def parameters(home: Path, *options: str) -> StdioServerParameters:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYRO_HOME": str(home)}
    command = ["-m", "tests.mcp.serve_memory", str(home), *options]
    return StdioServerParameters(command=sys.executable, args=command, env=environment, cwd=str(ROOT))


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_official_client_drives_the_process(tmp_path: Path, mode: Any) -> None:
    told: list[str] = []

    async def take(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    with anyio.fail_after(PATIENCE):
        async with Client(stdio_client(parameters(tmp_path)), mode=mode) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == PROFILES[DEFAULT_PROFILE].tools
            assert "workspace_create" in (client.instructions or "")
            await done(client, "workspace_create", environment="debian:12", name="demo")
            result = await client.call_tool(
                "workspace_exec", {"workspace": "demo", "command": "echo hello"}, progress_callback=take
            )
            assert result.structured_content["stdout"] == "hello\n"
            await done(client, "workspace_delete", workspace="demo")
    assert "hello\n" in "".join(told)


def spawn(home: Path, *options: str) -> subprocess.Popen[bytes]:
    given = parameters(home, *options)
    return subprocess.Popen(
        [given.command, *given.args],
        env=os.environ | (given.env or {}),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def exchange(process: subprocess.Popen[bytes], message: object) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line(message))
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def begin_endless_command(process: subprocess.Popen[bytes], pids: Path) -> int:
    """Starts a command that ends by itself never, and returns its process id."""
    assert process.stdin is not None
    exchange(process, INITIALIZE)
    process.stdin.write(line(INITIALIZED))
    exchange(process, call(2, "workspace_create", environment="debian:12", name="demo"))
    command = f"echo $$ > {pids}.new; mv {pids}.new {pids}; sleep 1000"
    process.stdin.write(line(call(3, "workspace_exec", workspace="demo", command=command)))
    process.stdin.flush()
    anyio.run(until, pids.exists)
    return int(pids.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_server_and_commands_though_the_client_stays(tmp_path: Path, number: signal.Signals) -> None:
    with spawn(tmp_path) as process:
        pid = begin_endless_command(process, tmp_path / "pids")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
        assert not alive(pid)
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_client_that_dies_ends_server_and_commands(tmp_path: Path) -> None:
    with spawn(tmp_path) as process:
        pid = begin_endless_command(process, tmp_path / "pids")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
        assert not alive(pid)
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_the_command_offers_the_profiles_there_are() -> None:
    (option,) = (option for option in serve.params if option.name == "profile")
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(PROFILES)
    assert option.default == DEFAULT_PROFILE


def test_only_serving_imports_the_sdk() -> None:
    program = "import sys, pyro_cli.invocation, pyro_cli.mcp, pyro_async.client\nprint('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"
