"""Daemons that are killed, on a home whose guests outlive them."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.operations import Event, ExecResult
from pyro_async.vmm.leftovers import find_processes

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30


@pytest.fixture(scope="session", autouse=True)
def _namespaces() -> None:
    probe = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("this host grants no PID namespace")


class Daemons:
    """One daemon after the other on one home."""

    def __init__(self, home: Path, images: Path | None = None) -> None:
        self.home = home
        self._arguments = [str(home), *([str(images)] if images else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = home.parent / "daemons.log"

    def start(self, fault: str = "") -> bool:
        """Starts a daemon; returns whether it serves, rather than having died before."""
        if self._process is not None:
            self._process.wait(PATIENCE)
        path = os.pathsep.join([str(ROOT), str(ROOT / "agent")])
        environment = os.environ | {"PYRO_FAULT": fault, "PYTHONPATH": path}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.process_daemon", *self._arguments],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            return stdout.readline() == b"serving\n"

    def died_at_its_fault(self) -> bool:
        """Waits for the daemon's end; whether it was killed, which only its fault point does."""
        assert self._process is not None
        return self._process.wait(PATIENCE) == -signal.SIGKILL

    def send(self, number: signal.Signals) -> None:
        """Sends the daemon a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Sends the daemon and every machine a signal, as a host that is suspended."""
        self.send(number)
        for found in find_processes(self.home / "workspaces").values():
            for identity in found:
                os.kill(identity.pid, number)

    def kill(self) -> None:
        """kill -9, and the end of it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)

    def end(self) -> None:
        """Leaves nothing of the home."""
        self.kill()
        for found in find_processes(self.home / "workspaces").values():
            for identity in found:
                if identity.is_alive():
                    os.kill(identity.pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)

    def client(self) -> AsyncPyro:
        return AsyncPyro(self.home)

    def processes(self) -> dict[str, int]:
        """How many processes there are for each workspace."""
        return {path.parts[0]: len(found) for path, found in find_processes(self.home / "workspaces").items()}

    def machine(self, workspace_id: str) -> int:
        """The pid of a workspace's VMM."""
        found = find_processes(self.home / "workspaces")[Path(workspace_id, "vm")]
        return min(found, key=lambda identity: (identity.start_ticks, identity.pid)).pid

    def stray_files(self) -> list[str]:
        """What lies in the home beside what belongs there when there is no workspace."""
        known = {"lock", "state.db", "state.db-wal", "state.db-shm", "daemon.sock", "empty.img", "workspaces"}
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.name not in known)

    def sockets(self, workspace_id: str) -> list[str]:
        """The sockets in a workspace's directory."""
        files = (self.home / "workspaces" / workspace_id).rglob("*")
        return sorted(path.name for path in files if stat.S_ISSOCK(path.lstat().st_mode))


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    daemons = Daemons(tmp_path / "home")
    yield daemons
    daemons.end()


@pytest.fixture
def vm_daemons(tmp_path: Path, pyro_home: Path) -> Iterator[Daemons]:
    """As ``daemons``, with real VMs."""
    daemons = Daemons(tmp_path / "home", pyro_home)
    yield daemons
    daemons.end()


async def ended(client: AsyncPyro, workspace: str = "ws", sequence: int = 1) -> ExecResult:
    """Waits for the end of a command that has no client any more."""
    with anyio.fail_after(PATIENCE):
        while True:
            entries = (await client.logs_workspace(workspace, limit=1000)).entries
            entry = next(entry for entry in entries if entry.sequence == sequence)
            if entry.exit_code is not None or entry.cause is not None:
                return entry
            await anyio.sleep(0.02)


async def kinds(client: AsyncPyro, prefix: str = "") -> list[str]:
    """The kinds of all events so far."""
    events: list[Event] = (await client.list_events()).events
    return [event.kind for event in events if event.kind.startswith(prefix)]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what nothing announces: the end of processes that are no children."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)
