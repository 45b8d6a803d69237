"""The way to a home's daemon: connects to its socket, starting it if need be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio.abc import SocketStream

from pyro_async import __version__
from pyro_async.calls import Call, Transport
from pyro_async.control import STATUS, STOP, TASKS, DaemonStatus, StopDaemon, is_older, peer_credentials
from pyro_async.errors import (
    DaemonUnavailable,
    Failure,
    HomeBusy,
    HomeUnusable,
    LinkLost,
    PyroError,
    VersionMismatch,
    error_from_failure,
)
from pyro_async.groups import plain_task_group
from pyro_async.home import Home
from pyro_async.operations import OPERATIONS, ExecOutput, Operation, Params, Result
from pyro_async.task_tree import TaskNode
from pyro_async.wire.codec import Hello, decode
from pyro_async.wire.connection import Connection, Data, End, Message, Role, Stream, outcome
from pyro_async.wire.guest import STDOUT

__all__ = ["DaemonStatus", "SocketTransport", "daemon_status", "daemon_tasks", "daemon_transport", "stop_daemon"]

#: How long a daemon may take to answer after it was started, or to let go of the home after it was stopped.
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 90.0
#: How long a daemon may take to greet.
GREETING_SECONDS: Final = 15.0
#: Between attempts to reach a daemon while one is starting or ending.
_RETRY_SECONDS: Final = 0.05
#: How long the daemon may take to confirm that a cancelled operation is undone.
CANCEL_GRACE: Final = 60.0


class SocketTransport:
    """Carries operations over a connection to a daemon."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def call(self, name: str, params: Params, call: Call) -> Result:
        """See :class:`~pyro_async.calls.Transport`."""
        operation = OPERATIONS[name]
        stream = self._connection.open(name, params)
        try:
            if call.input is None:
                return await _receive(stream, operation, call)
            async with plain_task_group() as tasks:
                tasks.start_soon(_feed, stream, call.input, name="input")
                result = await _receive(stream, operation, call)
                tasks.cancel_scope.cancel()
            return result
        except BaseException:
            await _give_up(stream)
            raise


async def _receive(stream: Stream, operation: Operation, call: Call) -> Result:
    while True:
        item = await stream.receive()
        if isinstance(item, Data):
            await call.emit(ExecOutput(stream="stdout" if item.channel == STDOUT else "stderr", data=item.data))
            stream.grant(len(item.data))
        elif isinstance(item, Message):
            await call.emit(decode(item.payload, operation.events))
            stream.grant(len(item.payload))
        elif isinstance(item, End):
            return outcome(item, operation.result)


async def _feed(stream: Stream, source: AsyncIterator[bytes]) -> None:
    async for data in source:
        try:
            await stream.send(data)
        except LinkLost:
            return  # the operation has ended, or the receiver raises what has happened
    stream.send_eof()


async def _give_up(stream: Stream) -> None:
    """Asks the daemon to undo the operation and waits, bounded, until it has."""
    if stream.ended:
        return
    stream.cancel()
    with anyio.move_on_after(CANCEL_GRACE, shield=True):
        try:
            await stream.result(msgspec.Raw)
        except PyroError:
            pass  # its end is all that matters here


@asynccontextmanager
async def daemon_transport(home: Path) -> AsyncIterator[Transport]:
    """Connects to the home's daemon, which is started if none answers, and replaced if it is older than this program.

    VMs and their commands outlive the replacement.

    Raises:
        HomeUnusable, DaemonUnavailable, VersionMismatch.
    """
    async with AsyncExitStack() as stack:
        yield SocketTransport(await _greeted(Home(home), stack))


async def _greeted(home: Home, stack: AsyncExitStack) -> Connection:
    """A connection to a daemon that is not about to end; ``stack`` owns it."""
    replaced = False
    deadline = anyio.current_time() + START_SECONDS
    while anyio.current_time() < deadline:
        try:
            connection = await stack.enter_async_context(_connected(await _reach(home)))
            # Once: a daemon that this program starts cannot be older, so what answers then is as new as it gets.
            if replaced or not is_older(connection.peer.software, __version__):
                return connection
            replaced = True
            await connection.call(STOP, StopDaemon(), object)
        except LinkLost:
            pass  # it is ending; the next one answers soon
        await stack.aclose()
        await anyio.sleep(_RETRY_SECONDS)
    raise DaemonUnavailable(f"the daemon of {home.root} ends again and again", hint=f"see {home.daemon_log}")


@asynccontextmanager
async def _connected(stream: SocketStream) -> AsyncIterator[Connection]:
    connection = Connection(stream, role=Role.CLIENT, hello=Hello(software=__version__))
    async with plain_task_group() as tasks:
        with anyio.move_on_after(GREETING_SECONDS) as silent:
            await tasks.start(connection.run, name="connection")
        if silent.cancelled_caught:
            raise DaemonUnavailable("the daemon does not answer", hint="it may be stopped or overloaded; see its log")
        try:
            yield connection
        finally:
            connection.close()


async def _reach(home: Home) -> SocketStream:
    """A stream to the daemon. Of several that are started at once one wins, and all clients reach that one."""
    stream = await _connect(home)
    if stream is not None:
        return stream
    with anyio.move_on_after(START_SECONDS):
        while True:
            failure = await _start(home)
            stream = await _connect(home)
            if stream is not None:
                return stream
            if failure is not None and not isinstance(failure, HomeBusy):
                raise failure
            await anyio.sleep(_RETRY_SECONDS)  # another process is starting or ending a daemon on this home
    raise DaemonUnavailable(
        f"the daemon of {home.root} does not answer",
        hint=f"see {home.daemon_log}, and end the process that holds {home.root / 'lock'}",
    )


async def _connect(home: Home) -> SocketStream | None:
    try:
        return await anyio.connect_unix(home.socket)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except PermissionError as error:
        raise HomeUnusable(f"the daemon of {home.root} belongs to another user", hint="set PYRO_HOME") from error


async def _start(home: Home) -> PyroError | None:
    """Starts a daemon and waits until it answers; returns why it does not."""
    command = [sys.executable, "-m", "pyro_async.runtime.daemon", "--home", str(home.root), "--detach"]
    done = await anyio.run_process(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode == 0:
        return None
    try:
        return error_from_failure(msgspec.json.decode(done.stdout, type=Failure))
    except msgspec.DecodeError:
        detail = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return DaemonUnavailable(f"the daemon could not be started: {detail}", hint=f"see {home.daemon_log}")


async def daemon_status(home: Path) -> DaemonStatus | None:
    """Describes the home's daemon, or returns None if there is none. Starts nothing."""
    stream = await _connect(Home(home))
    if stream is None:
        return None
    async with _connected(stream) as connection:
        return await connection.call(STATUS, None, DaemonStatus)


async def daemon_tasks(home: Path) -> TaskNode | None:
    """The living tasks of the home's daemon, or None if there is none. Starts nothing."""
    stream = await _connect(Home(home))
    if stream is None:
        return None
    async with _connected(stream) as connection:
        return await connection.call(TASKS, None, TaskNode)


async def stop_daemon(home: Path, *, all: bool = False) -> bool:  # noqa: A002 - the flag's public name
    """Stops the home's daemon and waits until it has let go of the home; False if there was none.

    Args:
        home: the home directory.
        all: also shut down its VMs; otherwise they run on and the next daemon takes them over.
    """
    stream = await _connect(Home(home))
    if stream is None:
        return False
    pid = peer_credentials(stream).pid
    try:
        async with _connected(stream) as connection:
            await connection.call(STOP, StopDaemon(all=all), object)
    except VersionMismatch:
        if all:
            raise
        os.kill(pid, signal.SIGTERM)  # every version understands that
    except LinkLost:
        pass  # it was about to stop anyway
    with anyio.move_on_after(STOP_SECONDS):
        await anyio.to_thread.run_sync(Home(home).wait_free, abandon_on_cancel=True)
        return True
    raise DaemonUnavailable("the daemon does not stop", hint=f"see {Home(home).daemon_log}")
