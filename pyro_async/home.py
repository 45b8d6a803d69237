"""The home directory: where everything lies, and who owns it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyro_async.errors import HomeBusy, HomeUnusable

__all__ = ["Home", "default_home"]

#: sun_path of a unix socket address, without the terminating NUL.
_SOCKET_PATH_LIMIT: Final = 107


def default_home() -> Path:
    """``$PYRO_HOME``, else ``pyro`` below ``$XDG_STATE_HOME``, else ``~/.local/state/pyro``."""
    if home := os.environ.get("PYRO_HOME"):
        return Path(home).expanduser().absolute()
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state).expanduser().absolute() / "pyro"
    return Path.home() / ".local" / "state" / "pyro"


class Home:
    """Paths below one home directory.

    Raises:
        HomeUnusable: it cannot be created or written, or its path is too long for a unix socket.
    """

    def __init__(self, root: Path) -> None:
        self.root: Final = root.absolute()
        self.socket: Final = self.root / "daemon.sock"
        self.daemon_log: Final = self.root / "daemon.log"
        self.database: Final = self.root / "state.db"
        self._lock: Final = self.root / "lock"
        self.workspaces: Final = self.root / "workspaces"
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_LIMIT:
            raise HomeUnusable(
                f"the home's path is too long for a unix socket: {self.root}",
                hint=f"set PYRO_HOME to a path of at most {_SOCKET_PATH_LIMIT - len('/daemon.sock')} bytes",
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.workspaces.mkdir(exist_ok=True)
        except OSError as error:
            raise HomeUnusable(
                f"cannot use the home directory {self.root}: {error.strerror}",
                hint="make it writable, or set PYRO_HOME to another directory",
            ) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise HomeUnusable(f"the home directory {self.root} is not writable", hint="set PYRO_HOME to another one")

    def workspace(self, workspace_id: str) -> Path:
        """The directory that holds all files of one workspace."""
        return self.workspaces / workspace_id

    def wait_free(self) -> None:
        """Blocks until no process holds the lock."""
        descriptor = self._open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        try:
            return os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HomeUnusable(f"cannot open the lock {self._lock}: {error.strerror}", hint="remove it") from error

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Holds the exclusive lock of this home; the kernel drops it with the process.

        Raises:
            HomeBusy: another process holds it.
        """
        descriptor = self._open_lock()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise HomeBusy(
                    f"another process owns {self.root}",
                    hint="talk to its daemon, end it with `pyro daemon stop`, or use another PYRO_HOME",
                ) from error
            yield
        finally:
            os.close(descriptor)
