from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyro_cli.invocation import invoke
from tests.cli.fake_pyro import FakeTransport

ROOT = Path(__file__).resolve().parents[2]


class Outcome(NamedTuple):
    """What a finished command line left."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


Cli = Callable[..., Awaitable[Outcome]]
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def cli(transport: FakeTransport, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line in this process, on the test's event loop and the fake transport."""
    monkeypatch.delenv("PYRO_DEBUG", raising=False)

    async def run(*argv: str) -> Outcome:
        capfd.readouterr()
        status = await invoke(argv, transport=transport)
        return Outcome(status, *capfd.readouterr())

    return run


@pytest.fixture
def spawn(tmp_path: Path) -> Spawn:
    """Starts a command line as a process, with the fake daemon of :mod:`tests.cli.fake_pyro`."""

    def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]),
            "PYRO_HOME": str(tmp_path / "home"),
            **options.pop("env", {}),
        }
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.cli.fake_pyro", *argv], env=environment, cwd=ROOT, **pipes | options
        )

    return start
