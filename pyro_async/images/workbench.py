"""Where artifacts are made: locks, private work directories, and one build's tools in one place.

Two processes may share a home. Whoever wants to make an artifact takes its lock first; the other waits and then finds
the artifact there. A work directory is locked for as long as its maker, or any command it started, lives; what a killed
process left behind is recognised by its free lock and removed by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

import anyio
from anyio import to_thread

from pyro_async.errors import HomeUnusable, HostDiskFull
from pyro_async.images.commands import run_command
from pyro_async.images.progress import Progress, Report

__all__ = ["Build", "Workbench", "host_errors"]

LOCK_POLL_SECONDS = 0.1
"""flock has no asynchronous form, and a thread blocked in it could not be cancelled: so a waiter looks again."""


class Build:
    """One artifact in the making.

    Attributes:
        directory: private and empty at first; removed at the end, so what shall stay is moved out of it.
        report: where progress goes.
    """

    def __init__(self, directory: Path, lock: int, log: IO[bytes], report: Report) -> None:
        self.directory = directory
        self.report = report
        self._lock = lock
        self._log = log

    def progress(self, phase: str, detail: str = "", fraction: float | None = None) -> None:
        self.report(Progress(phase=phase, detail=detail, fraction=fraction))

    async def run(
        self,
        argv: Sequence[str],
        *,
        what: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """Runs a command that the work directory outlives; see :func:`~pyro_async.images.commands.run_command`."""
        return await run_command(
            argv, what=what, log=self._log, cwd=cwd or self.directory, env=env, keep=[self._lock], on_line=on_line
        )


class Workbench:
    """The ``tmp``, ``locks`` and ``logs`` directories of a home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._tmp = home / "tmp"
        self._locks = home / "locks"
        self._logs = home / "logs"

    @asynccontextmanager
    async def exclusive(self, name: str, report: Report) -> AsyncIterator[None]:
        """Holds the lock called ``name`` among all processes; says so when it has to wait for another."""
        with host_errors(self.home):
            self._locks.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._locks / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(descriptor):
                report(Progress(phase="waiting", detail=f"another pyro process is making {name}"))
                while not _try_lock(descriptor):  # noqa: ASYNC110 - no event tells of another process
                    await anyio.sleep(LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    @asynccontextmanager
    async def build(self, name: str, report: Report) -> AsyncIterator[Build]:
        """Opens a work directory and the log ``logs/NAME.log``; foreign errors inside become pyro's own."""
        with host_errors(self.home):
            self._logs.mkdir(parents=True, exist_ok=True)
            self._tmp.mkdir(parents=True, exist_ok=True)
            await self.sweep()
            directory, lock = self._claim(name)
            try:
                with (self._logs / f"{name}.log").open("wb") as log:
                    yield Build(directory, lock, log, report)
            finally:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(_remove_tree, directory)
                os.close(lock)

    def _claim(self, name: str) -> tuple[Path, int]:
        with self._all_of_tmp():
            directory = self._tmp / f"{name}-{secrets.token_hex(4)}"
            directory.mkdir(mode=0o700)
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return directory, lock

    async def sweep(self) -> None:
        """Removes work directories whose makers are gone."""
        await to_thread.run_sync(self._sweep)

    def _sweep(self) -> None:
        if not self._tmp.is_dir():
            return
        for directory in self._tmp.iterdir():
            with self._all_of_tmp():
                try:
                    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                stale = _try_lock(lock)
            try:
                if stale:
                    _remove_tree(directory)
            finally:
                os.close(lock)

    @contextmanager
    def _all_of_tmp(self) -> Iterator[None]:
        # A fresh directory must not look abandoned between its creation and its locking.
        descriptor = os.open(self._tmp, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def host_errors(home: Path) -> Iterator[None]:
    """Maps what the host's filesystem can do to us below ``home`` to pyro's own errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostDiskFull(f"no space left below {home}", hint="free some disk space and try again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise HomeUnusable(
                f"cannot write to {error.filename or home}: {error.strerror}",
                hint="choose another home directory with PYRO_HOME, or fix its permissions",
            ) from error
        raise


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_tree(directory: Path) -> None:
    if os.geteuid():  # images may hold directories that their owner may not write to
        for parent, names, _ in os.walk(directory):
            for name in names:
                path = os.path.join(parent, name)
                if not os.path.islink(path):
                    with suppress(OSError):
                        os.chmod(path, 0o700)
    shutil.rmtree(directory, ignore_errors=True)
