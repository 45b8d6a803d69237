"""The home in which the tests run real VMs: its images, its daemon, and a workspace that tests share."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from pyro_async import Pyro
from pyro_async.errors import PyroError, SetupRequired
from pyro_async.images.store import ImageStore
from pyro_async.transport import daemon_status, stop_daemon

__all__ = ["BUSYBOX", "VmHome"]

#: Name of an environment that holds nothing but a static busybox.
BUSYBOX = "busybox-only"


class VmHome:
    """A home with a daemon of its own for as long as the tests run.

    Args:
        home: its directory; images that are there already are used, and whatever is made stays.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.shared_workspace = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            assert portal.call(daemon_status, self.home) is None, f"a daemon runs on {self.home}"
            stack.callback(portal.call, _stop, self.home)
            client = stack.enter_context(Pyro(self.home))
            try:
                workspace = client.create_workspace("debian:12", name="shared")
            except SetupRequired as error:
                pytest.skip(str(error))
            stack.callback(client.delete_workspace, workspace.workspace_id)
            self.shared_workspace = workspace.workspace_id
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def busybox(self) -> str:
        """Makes the environment of that name unless it is there."""
        try:
            with Pyro(self.home) as client:
                client.inspect_environment(BUSYBOX)
        except PyroError:
            with tempfile.TemporaryDirectory() as tree:
                _make_busybox_tree(Path(tree))
                anyio.run(ImageStore(self.home).register_tree, BUSYBOX, Path(tree))
        return BUSYBOX


async def _stop(home: Path) -> None:
    await stop_daemon(home, all=True)


def _make_busybox_tree(tree: Path) -> None:
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("busybox-static is not installed")
    (tree / "bin").mkdir()
    (tree / "etc").mkdir()
    shutil.copy(program, tree / "bin" / "busybox")
    for applet in ("cat", "echo", "ls", "sh", "sleep", "touch", "true", "uname"):
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
