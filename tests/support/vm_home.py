"""The home in which the tests run real VMs: its images, its daemon, and a workspace that tests share."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from anyio.from_thread import start_blocking_portal

from pyro_async import Pyro
from pyro_async.errors import EnvironmentNotFound, SetupRequired
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

    def __enter__(self) -> Self:
        with start_blocking_portal() as portal:
            assert portal.call(daemon_status, self.home) is None, f"a daemon runs on {self.home}"
        with ExitStack() as stack:
            stack.callback(self._stop)
            with Pyro(self.home) as client:
                try:
                    self.shared_workspace = client.create_workspace("debian:12", name="shared").workspace_id
                except SetupRequired as error:
                    pytest.skip(str(error))
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with Pyro(self.home) as client:
                client.delete_workspace(self.shared_workspace)
        finally:
            self._stop()

    def _stop(self) -> None:
        with start_blocking_portal() as portal:
            portal.call(partial(stop_daemon, self.home, all=True))

    def busybox(self) -> str:
        """Makes the environment of that name unless it is there."""
        images = ImageStore(self.home)
        try:
            images.inspect(BUSYBOX)
        except EnvironmentNotFound:
            with tempfile.TemporaryDirectory() as tree, start_blocking_portal() as portal:
                _make_busybox_tree(Path(tree))
                portal.call(images.register_tree, BUSYBOX, Path(tree))
        return BUSYBOX


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
