"""Several programs at the same instant on one home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from pyro_async.transport import daemon_status, stop_daemon
from tests.crash.conftest import PATIENCE, ROOT
from tests.support.processes import running_with


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_five_clients_that_find_no_daemon_reach_the_same_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = os.environ | {
        "PYRO_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "agent", "cli")),
    }
    command = [sys.executable, "-m", "pyro_cli", "workspace", "list", "--json"]
    clients = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    try:
        for client in clients:
            out, err = client.communicate(timeout=PATIENCE)
            assert (client.returncode, err) == (0, "")
            assert json.loads(out) == {"workspaces": []}
        status = await daemon_status(home)
        assert status is not None
        assert running_with(f"--home\0{home}\0") == [status.pid]
        with anyio.fail_after(PATIENCE):
            assert await stop_daemon(home)
        assert not (home / "daemon.sock").exists()
    finally:
        for client in clients:
            client.kill()
            client.communicate()
