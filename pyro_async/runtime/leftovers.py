"""What an earlier process left behind and nobody can use any more: ended, removed, and told of."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

from pyro_async.errors import PyroError
from pyro_async.faults import fault_point
from pyro_async.home import Home
from pyro_async.runtime.events import Happened
from pyro_async.runtime.store import Store
from pyro_async.runtime.workspace import Workspace
from pyro_async.vmm.leftovers import end_processes, find_processes
from pyro_async.vmm.process import ProcessIdentity

__all__ = ["Leftovers", "remove_tree"]


class Leftovers:
    """The processes and files below a home that the process which made them does not look after any more.

    Only for the owner of the home's lock: nobody else starts or ends anything there then.
    """

    def __init__(self, home: Home, store: Store) -> None:
        self._home = home
        self._store = store
        self._processes: dict[str, list[ProcessIdentity]] = {}
        for directory, identities in find_processes(home.workspaces).items():
            self._processes.setdefault(directory.parts[0], []).extend(identities)

    async def remove_strangers(self, known: Container[str]) -> None:
        """Ends processes and removes files of workspaces that are not recorded."""
        present = {entry.name for entry in self._home.workspaces.iterdir()}
        for name in sorted(present | self._processes.keys()):
            if name not in known:
                killed = await end_processes(self._processes.pop(name, []))
                await to_thread.run_sync(remove_tree, self._home.workspace(name))
                fault_point("recover.reaped")
                self._store.record(Happened("recovery.reaped", name, {"processes": len(killed), "recorded": False}))

    async def reap(self, workspace: Workspace) -> None:
        """Ends whatever still runs for a workspace, recorded or not, and removes its sockets."""
        record = workspace.record
        killed = 0
        if record.machine is not None and record.spec is not None:
            try:
                async with workspace.driver.adopt(record.spec, record.machine):
                    killed += 1  # leaving the context kills it
            except PyroError:
                pass  # it is gone already
            record.machine = None
        killed += len(await end_processes(self._processes.pop(record.workspace_id, [])))
        await to_thread.run_sync(_remove_sockets, workspace.directory)
        fault_point("recover.reaped")
        if killed:
            self._store.record(workspace.happened("recovery.reaped", processes=killed))


def remove_tree(directory: Path) -> None:
    """Removes a directory with all it holds, as far as it is there."""
    shutil.rmtree(directory, ignore_errors=True)


def _remove_sockets(directory: Path) -> None:
    with suppress(FileNotFoundError):
        for path in (directory / "vm").iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode) or stat.S_ISFIFO(path.lstat().st_mode):
                path.unlink(missing_ok=True)
