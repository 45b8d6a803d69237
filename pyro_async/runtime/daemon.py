"""The daemon: one runtime per home, behind a unix socket.

``python -m pyro_async.runtime.daemon --home DIR [--detach]``. With ``--detach`` the command returns once the daemon
answers, or prints why it does not.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio import TASK_STATUS_IGNORED
from anyio.abc import SocketStream, TaskStatus

from pyro_async import __version__
from pyro_async.calls import Call
from pyro_async.control import STATUS, STOP, TASKS, DaemonStatus, StopDaemon, peer_credentials
from pyro_async.errors import InternalError, PyroError, UnknownOperation
from pyro_async.faults import fault_point
from pyro_async.groups import plain_task_group
from pyro_async.home import Home
from pyro_async.operations import ListWorkspaces
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.runtime.log import configure_log, event
from pyro_async.runtime.runtime import Runtime
from pyro_async.runtime.serving import serve_client
from pyro_async.task_tree import running_tasks, task_tree
from pyro_async.wire.codec import Request, decode

__all__ = ["Daemon", "main"]

_log: Final = logging.getLogger("pyro.daemon")


class Daemon:
    """Serves a runtime on its home's socket until it is told to stop.

    Args:
        runtime: entered and left by the caller.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._transport = DirectTransport(runtime)
        self._started_at = time.time()
        self._stop = anyio.Event()

    async def serve(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Serves clients; started once the socket answers. Returns after :meth:`stop`; the socket is gone then."""
        path = self._runtime.home.socket
        path.unlink(missing_ok=True)  # left by a daemon that was killed: we hold the home's lock
        async with await anyio.create_unix_listener(path, mode=0o600) as listener:
            try:
                async with plain_task_group() as tasks:
                    tasks.start_soon(listener.serve, self._client, tasks, name="listener")
                    fault_point("daemon.serving")
                    task_status.started()
                    await self._stop.wait()
                    if self._runtime.leave_running:
                        # Before the clients are let go: a command whose client goes away would be killed.
                        await self._runtime.release()
                        fault_point("daemon.released")
                    tasks.cancel_scope.cancel()
            finally:
                path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ends :meth:`serve`. From now on nobody reaches this daemon: who comes is for the next one."""
        self._runtime.home.socket.unlink(missing_ok=True)
        self._stop.set()

    async def _client(self, stream: SocketStream) -> None:
        peer = peer_credentials(stream)
        event("client connected", logging.DEBUG, client_pid=peer.pid, uid=peer.uid)
        if peer.uid not in (0, os.getuid()):
            event("client refused", logging.WARNING, client_pid=peer.pid, uid=peer.uid)
            await anyio.aclose_forcefully(stream)
            return
        try:
            await serve_client(stream, self._transport, self._control)
        except PyroError as error:
            event("client refused", client_pid=peer.pid, error=str(error))
        except Exception:  # a defect met by one client must not end the daemon
            _log.exception("serving a client failed")
        event("client disconnected", logging.DEBUG, client_pid=peer.pid)

    async def _control(self, request: Request) -> object:
        if request.method == STATUS:
            workspaces = await self._runtime.list_workspaces(ListWorkspaces(), Call())
            return DaemonStatus(
                pid=os.getpid(),
                version=__version__,
                started_at=self._started_at,
                workspaces=len(workspaces.workspaces),
            )
        if request.method == TASKS:
            return task_tree(running_tasks())
        if request.method == STOP:
            self._runtime.leave_running = not decode(request.params, StopDaemon).all
            self.stop()
            return None
        raise UnknownOperation(f"there is no operation {request.method!r}", hint="use the daemon's version of pyro")


async def serve_home(home: Path, ready: Callable[[], None]) -> None:
    async with Runtime(home, leave_running=True) as runtime:
        daemon = Daemon(runtime)
        async with plain_task_group() as tasks:
            tasks.start_soon(_stop_on_signal, daemon, name="signals")
            tasks.start_soon(_announce, daemon, ready, tasks.cancel_scope, name="serve")


async def _announce(daemon: Daemon, ready: Callable[[], None], scope: anyio.CancelScope) -> None:
    async with plain_task_group() as tasks:
        await tasks.start(daemon.serve, name="connections")
        event("daemon serving", version=__version__, pid=os.getpid())
        ready()
    event("daemon stopping")
    scope.cancel()


async def _stop_on_signal(daemon: Daemon) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            event("signal received", signal=number.name)
            daemon.stop()


def main() -> None:
    """Entry point; exits with 0 after an orderly stop, with 1 and the failure as JSON on stdout otherwise."""
    parser = argparse.ArgumentParser(prog="pyro daemon run")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--detach", action="store_true")
    options = parser.parse_args()
    try:
        home = Home(options.home)
        ready = _detach(home) if options.detach else lambda: None
    except PyroError as error:
        sys.exit(_report(error))
    sys.exit(run_daemon(home.root, ready, log_to_file=options.detach))


def run_daemon(home: Path, ready: Callable[[], None], *, log_to_file: bool) -> int:
    """Runs a daemon to its end; returns the exit status."""
    try:
        configure_log(Home(home).daemon_log if log_to_file else None)
        anyio.run(serve_home, home, ready)
    except PyroError as error:
        event("daemon failed", logging.ERROR, code=error.code, error=str(error))
        return _report(error)
    except Exception as error:
        _log.exception("the daemon failed")
        return _report(InternalError(f"{type(error).__name__}: {error}", hint="see daemon.log"))
    return 0


def _report(error: PyroError) -> int:
    sys.stdout.write(msgspec.json.encode(error.to_failure()).decode())
    sys.stdout.flush()
    return 1


def _detach(home: Home) -> Callable[[], None]:
    """Goes on in a child in a session of its own; the parent exits once the child is ready or has failed.

    Until then the child's stdout leads to the parent's, for the failure; afterwards, and for stderr at once, to the
    log.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        ready = os.read(reader, 1)
        os._exit(0 if ready else 1)
    os.close(reader)
    os.setsid()
    os.chdir("/")
    log = os.open(home.daemon_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 2)

    def ready_now() -> None:
        os.dup2(log, 1)
        os.write(writer, b"+")
        os.close(writer)

    return ready_now


if __name__ == "__main__":
    main()
