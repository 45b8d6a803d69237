"""The daemon as a process of its own, without any VM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest

from pyro_async import AsyncPyro
from pyro_async.control import STATUS, DaemonStatus
from pyro_async.errors import (
    DaemonUnavailable,
    HomeBusy,
    HomeUnusable,
    PyroError,
    UnknownOperation,
    VersionMismatch,
)
from pyro_async.runtime.runtime import Runtime
from pyro_async.transport import daemon_status, stop_daemon
from pyro_async.wire.codec import Hello, encode
from pyro_async.wire.connection import Connection
from pyro_async.wire.frames import HEADER, FrameDecoder, FrameType
from pyro_async.wire.mux import Role
from tests.support.eventually import eventually
from tests.support.processes import running_with


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    """A home whose daemon, if a test leaves one, is stopped."""
    home = tmp_path / "home"
    yield home
    await stop_daemon(home)
    await eventually(lambda: not running_with(str(home)))  # the lock is free a moment before the process is gone
    assert not (home / "daemon.sock").exists()


async def pid_of(home: Path) -> int:
    status = await daemon_status(home)
    assert status is not None
    return status.pid


async def gone(pid: int) -> None:
    await eventually(lambda: not Path(f"/proc/{pid}/exe").exists())


async def test_the_first_client_starts_it_and_it_stays(home: Path) -> None:
    assert await daemon_status(home) is None
    async with AsyncPyro(home) as client:
        assert (await client.list_workspaces()).workspaces == []
    pid = await pid_of(home)
    async with AsyncPyro(home) as client:
        await client.list_workspaces()
    assert await pid_of(home) == pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert (home / "daemon.sock").stat().st_mode & 0o777 == 0o600


async def test_of_many_clients_that_start_it_at_once_all_reach_the_same(home: Path) -> None:
    pids: list[int] = []

    async def connect() -> None:
        async with AsyncPyro(home) as client:
            await client.list_workspaces()
            pids.append(await pid_of(home))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(connect)
    assert len(pids) == 5
    assert len(set(pids)) == 1


@pytest.mark.parametrize("everything", [False, True])
async def test_stopping_it_ends_it_and_frees_the_home(home: Path, everything: bool) -> None:
    async with AsyncPyro(home):
        pid = await pid_of(home)
        assert await stop_daemon(home, all=everything)
    await gone(pid)
    assert not await stop_daemon(home)
    async with Runtime(home):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_in_good_order(home: Path, number: signal.Signals) -> None:
    async with AsyncPyro(home):
        pid = await pid_of(home)
    os.kill(pid, number)
    await gone(pid)
    assert not (home / "daemon.sock").exists()
    assert "stopping" in (home / "daemon.log").read_text()


async def test_after_kill_9_every_client_finds_a_new_one(home: Path) -> None:
    async with AsyncPyro(home) as client:
        first = await pid_of(home)
        os.kill(first, signal.SIGKILL)
        await gone(first)
        assert (home / "daemon.sock").exists()
        await client.list_workspaces()
        second = await pid_of(home)
        assert second != first
    async with AsyncPyro(home) as client:
        await client.list_workspaces()
        assert await pid_of(home) == second


async def test_a_socket_that_nobody_serves_is_replaced(home: Path) -> None:
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home / "daemon.sock"))
    async with AsyncPyro(home) as client:
        await client.list_workspaces()


async def test_a_home_owned_by_a_program_that_serves_nothing_is_told_as_such(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_async.transport.START_SECONDS", 1.5)
    async with Runtime(home):
        with pytest.raises((DaemonUnavailable, HomeBusy), match=r"does not answer|owns"):
            async with AsyncPyro(home):
                pass


async def test_why_it_cannot_start_reaches_the_client(home: Path) -> None:
    home.mkdir()
    (home / "state.db").write_bytes(b"no database" * 500)
    with pytest.raises(HomeUnusable, match="records cannot be used"):
        async with AsyncPyro(home):
            pass


async def test_started_by_hand_it_reports_why_it_ends(home: Path) -> None:
    home.mkdir()
    command = [sys.executable, "-m", "pyro_async.runtime.daemon", "--home", str(home)]
    async with Runtime(home):
        done = await anyio.run_process(command, check=False)
    assert done.returncode == 1
    assert msgspec.json.decode(done.stdout)[0] == "home_busy"
    assert b"Traceback" not in done.stdout + done.stderr


async def test_cancelling_a_client_that_starts_it_leaves_a_home_that_works(home: Path) -> None:
    for delay in (0.01, 0.1, 0.3):
        with anyio.move_on_after(delay):
            async with AsyncPyro(home):
                pass
    async with AsyncPyro(home) as client:
        await client.list_workspaces()


# --- peers ------------------------------------------------------------------------------------------------------------


async def test_a_client_of_another_version_gets_a_greeting_and_no_more(home: Path) -> None:
    async with AsyncPyro(home) as client:
        stream = await anyio.connect_unix(home / "daemon.sock")
        await stream.send(_frame(FrameType.HELLO, 0, encode(Hello(protocol=99))))
        received = b""
        with pytest.raises(anyio.EndOfStream):
            while True:
                received += await stream.receive()
        assert FrameDecoder().feed(received)[0].kind == FrameType.HELLO
        await stream.aclose()
        await client.list_workspaces()


async def test_a_daemon_of_another_version_is_refused_with_a_hint(home: Path) -> None:
    home.mkdir()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(_frame(FrameType.HELLO, 0, encode(Hello(protocol=99, software="9.9"))))
            await anyio.sleep_forever()

    async with await anyio.create_unix_listener(home / "daemon.sock") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        with pytest.raises(VersionMismatch, match=r"9\.9.*protocol 99") as caught:
            async with AsyncPyro(home):
                pass
        assert "pyro daemon stop" in caught.value.hint
        tasks.cancel_scope.cancel()
    (home / "daemon.sock").unlink()


@pytest.mark.parametrize("noise", [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b""], ids=["impossible", "http", "nothing"])
async def test_a_peer_that_talks_nonsense_is_dropped_and_harms_nobody(home: Path, noise: bytes) -> None:
    async with AsyncPyro(home) as client:
        stream = await anyio.connect_unix(home / "daemon.sock")
        if noise:
            await stream.send(noise)
        else:
            await stream.send_eof()
        with anyio.fail_after(5), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            while True:
                await stream.receive()
        await stream.aclose()
        await client.list_workspaces()


async def test_a_request_it_does_not_know_is_refused(home: Path) -> None:
    async with AsyncPyro(home):
        stream = await anyio.connect_unix(home / "daemon.sock")
        connection = Connection(stream, role=Role.CLIENT, hello=Hello())
        async with anyio.create_task_group() as tasks:
            await tasks.start(connection.run)
            with pytest.raises(UnknownOperation, match="from_the_future"):
                await connection.call("from_the_future", None, object)
            with pytest.raises(PyroError, match="workspace"):
                await connection.call("status_workspace", {"workspace": 5}, object)
            with pytest.raises(PyroError, match="unknown field"):
                await connection.call("list_workspaces", {"what": 1}, object)
            assert (await connection.call(STATUS, None, DaemonStatus)).workspaces == 0
            connection.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
async def test_another_user_is_refused(home: Path, tmp_path: Path) -> None:
    async with AsyncPyro(home) as client:
        # Even if somebody opened the way to it.
        for directory in (home, *home.parents):
            if directory.stat().st_uid == os.getuid() and str(directory).startswith(str(tmp_path.parents[1])):
                directory.chmod(0o755)
        (home / "daemon.sock").chmod(0o777)
        program = (
            "import os, socket, sys\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "peer = socket.socket(socket.AF_UNIX); peer.settimeout(5); peer.connect(sys.argv[1])\n"
            "print(len(peer.recv(100)))\n"
        )
        output = subprocess.run(
            [sys.executable, "-c", program, str(home / "daemon.sock")], capture_output=True, text=True, check=False
        )
        assert output.stdout == "0\n" or "ConnectionReset" in output.stderr, output
        await client.list_workspaces()


def _frame(kind: int, stream_id: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), stream_id, kind) + payload
