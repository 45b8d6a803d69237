"""Clients and daemons of different versions, and several of them at once, on one home without a VM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro, __version__
from pyro_async.control import is_older
from pyro_async.errors import VersionMismatch
from pyro_async.transport import daemon_status, stop_daemon
from tests.crash.conftest import PATIENCE, ROOT

#: Run before anything else of pyro was imported.
VERSION = "import pyro_async; pyro_async.__version__ = '{}'"
PROTOCOL = """
import msgspec
from pyro_async.wire import codec
fields = [("protocol", int, 99), ("software", str, ""), ("nonce", bytes, b""), ("generation", int, 0)]
codec.PROTOCOL_VERSION, codec.Hello = 99, msgspec.defstruct("Hello", fields, frozen=True, kw_only=True, array_like=True)
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home

    async def stop() -> None:
        await stop_daemon(home, all=True)

    anyio.run(stop)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "agent", "cli"))}


def start_other(home: Path, prelude: str) -> int:
    """Starts a daemon that differs in what ``prelude`` changes; returns its pid."""
    code = f"{prelude}\nimport runpy\nrunpy.run_module('pyro_async.runtime.daemon', run_name='__main__')"
    command = [sys.executable, "-c", code, "--home", str(home), "--detach"]
    subprocess.run(command, env=environment(), check=True, timeout=PATIENCE)
    (pid,) = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _serves(entry, home))
    return pid


def _serves(process: Path, home: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return b"--home\0" + os.fsencode(home) + b"\0--detach" in command


@pytest.mark.parametrize(
    ("version", "than", "older"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.9", "0.10", True),
        ("1.2", "1.2.0", False),
        ("1.2.0", "1.2", False),
        ("0.2.0", "0.1.0", False),
        ("0.1.0.dev1", "0.1.0", False),
        ("unknown", "unknown", False),
    ],
)
def test_releases_are_ordered_by_their_numbers(version: str, than: str, older: bool) -> None:
    assert is_older(version, than) is older


async def test_an_older_daemon_is_replaced(home: Path) -> None:
    with anyio.fail_after(60):
        old = start_other(home, VERSION.format("0.0.1"))
        async with AsyncPyro(home) as client:
            await client.list_workspaces()
        status = await daemon_status(home)
        assert status is not None
        assert (status.version, status.pid == old) == (__version__, False)


async def test_a_newer_daemon_serves_older_clients(home: Path) -> None:
    with anyio.fail_after(60):
        newer = start_other(home, VERSION.format("99.0"))
        async with AsyncPyro(home) as client:
            await client.list_workspaces()
        status = await daemon_status(home)
        assert status is not None
        assert (status.version, status.pid) == ("99.0", newer)


async def test_a_daemon_of_another_protocol_is_refused_in_words_and_can_be_stopped(home: Path) -> None:
    with anyio.fail_after(60):
        start_other(home, PROTOCOL)
        with pytest.raises(VersionMismatch, match=r"speaks protocol 99, this one .* 1") as caught:
            async with AsyncPyro(home):
                pass
        assert "pyro daemon stop" in caught.value.hint
        assert await stop_daemon(home)
        async with AsyncPyro(home) as client:
            await client.list_workspaces()
