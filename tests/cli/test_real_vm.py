"""The command line against a real daemon and a real VM: what only both together can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from pyro_async.transport import stop_daemon
from tests.cli.conftest import ROOT

pytestmark = pytest.mark.vm

PATIENCE = 60
#: A build of the environment may be part of it.
FIRST_PATIENCE = 600

Pyro = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def pyro(pyro_home: Path) -> Iterator[Pyro]:
    """Starts a command line on a home whose daemon is ended with all its VMs afterwards."""
    environment = os.environ | {
        "PYRO_HOME": str(pyro_home),
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "agent", "cli")),
    }

    def start(*argv: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "pyro_cli", *argv], env=environment, cwd=ROOT, text=True, **pipes
        )

    yield start

    async def stop() -> None:
        await stop_daemon(pyro_home, all=True)

    anyio.run(stop)


@pytest.fixture(scope="module")
def workspace(pyro: Pyro) -> Iterator[str]:
    with pyro("workspace", "create", "debian:12", "--id-only") as process:
        out, err = process.communicate(timeout=FIRST_PATIENCE)
    assert process.returncode == 0, err
    yield out.strip()
    with pyro("workspace", "delete", out.strip()) as process:
        process.communicate(timeout=PATIENCE)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out


def test_an_interrupt_leaves_no_process_in_the_guest(pyro: Pyro, workspace: str) -> None:
    stubborn = "trap '' TERM INT; sleep 1000 & (setsid sleep 1000 &); echo begun; sleep 1000; sleep 1000"
    with pyro("workspace", "exec", workspace, "--", "sh", "-c", stubborn) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert finish(pyro("workspace", "exec", workspace, "--", "pgrep", "-c", "sleep")) == (0, "3\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert finish(pyro("workspace", "exec", workspace, "--", "pgrep", "-c", "sleep")) == (1, "0\n")


def test_a_reader_that_goes_away_ends_the_command(pyro: Pyro, workspace: str) -> None:
    with pyro("workspace", "exec", workspace, "--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
    assert finish(pyro("workspace", "exec", workspace, "--", "pgrep", "-c", "yes")) == (1, "0\n")


def test_a_timeout_exits_with_124_and_keeps_the_output(pyro: Pyro, workspace: str) -> None:
    argv = ("--timeout-seconds", "1", "--", "sh", "-c", "echo partial; sleep 1000")
    assert finish(pyro("workspace", "exec", workspace, *argv)) == (124, "partial\n")
