"""The way to a home's daemon: connects to its socket, starting it if need be, and again when the daemon was lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import anyio
import msgspec
from anyio.abc import SocketStream, TaskGroup

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
from pyro_async.operations import OPERATIONS, ExecOutput, ExecStarted, Operation, OutputDropped, Params, Result
from pyro_async.resumption import Resumption
from pyro_async.task_tree import TaskNode
from pyro_async.wire.codec import Hello, decode
from pyro_async.wire.connection import Connection, Data, End, Message, Role, Stream, outcome
from pyro_async.wire.guest import STDOUT

__all__ = [
    "DaemonStatus",
    "DaemonTransport",
    "SocketTransport",
    "daemon_status",
    "daemon_tasks",
    "daemon_transport",
    "stop_daemon",
]

#: How long a daemon may take to answer after it was started, or to let go of the home after it was stopped.
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 90.0
#: How long a daemon may take to greet.
GREETING_SECONDS: Final = 15.0
#: Between attempts to reach a daemon while one is starting or ending.
_RETRY_SECONDS: Final = 0.05
#: How long the daemon may take to confirm that a cancelled operation is undone.
CANCEL_GRACE: Final = 60.0
#: How long a daemon that was stopped in good order is waited for, before what waits for it is given up.
RESTART_SECONDS: Final = 5.0
#: So many daemons may be lost over one operation without a step ahead: it may be what ends them.
MAX_LOSSES: Final = 5


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
    cursor = 0
    while True:
        item = await stream.receive()
        if isinstance(item, Data):
            cursor += len(item.data)
            name: Literal["stdout", "stderr"] = "stdout" if item.channel == STDOUT else "stderr"
            await call.emit(ExecOutput(stream=name, data=item.data, cursor=cursor))
            stream.grant(len(item.data))
        elif isinstance(item, Message):
            event = decode(item.payload, operation.events)
            if isinstance(event, ExecStarted | OutputDropped):
                cursor = event.cursor
            await call.emit(event)
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


class DaemonTransport:
    """Carries operations to a home's daemon, over a new connection whenever the last one is down.

    An operation under way when the daemon is lost goes on with the next daemon if it can be asked for again without
    doing anything twice, see :mod:`~pyro_async.resumption`; otherwise it fails with LinkLost.

    Args:
        home: whose daemon.
        tasks: own the connections.
    """

    def __init__(self, home: Home, tasks: TaskGroup) -> None:
        self._home = home
        self._tasks = tasks
        self._connection: Connection | None = None
        self._dialing = anyio.Lock()

    async def connect(self) -> Connection:
        """The connection, made if there is none that is up.

        Raises:
            HomeUnusable, DaemonUnavailable, VersionMismatch.
        """
        async with self._dialing:
            if self._connection is None or self._connection.failure is not None:
                self._connection = await _greeted(self._home, self._tasks)
            return self._connection

    async def call(self, name: str, params: Params, call: Call) -> Result:
        """See :class:`~pyro_async.calls.Transport`."""
        resumption = Resumption(OPERATIONS[name], params, call)
        losses = 0
        while True:
            connection = await self.connect()
            steps = resumption.steps
            try:
                return await SocketTransport(connection).call(name, resumption.params, resumption.call)
            except LinkLost as error:
                if connection.failure is None:
                    if self._home.socket.exists():
                        raise  # the workspace's link, not ours
                    connection.close()  # the daemon is ending
                losses = 1 if resumption.steps > steps else losses + 1
                if not resumption.possible or losses >= MAX_LOSSES or await self._was_stopped():
                    raise resumption.explained(error) from None

    async def _was_stopped(self) -> bool:
        """Whether the daemon ended in good order, so that nobody but its user should start it again.

        A daemon that was killed leaves its socket behind. One that was stopped does not; it may be a restart, then the
        next one's socket appears soon.
        """
        with anyio.move_on_after(RESTART_SECONDS):
            while True:
                if self._home.socket.exists():
                    return False
                await anyio.sleep(_RETRY_SECONDS)
        return True


@asynccontextmanager
async def daemon_transport(home: Path) -> AsyncIterator[Transport]:
    """Connects to the home's daemon, which is started if none answers, and replaced if it is older than this program.

    VMs and their commands outlive the replacement.

    Raises:
        HomeUnusable, DaemonUnavailable, VersionMismatch.
    """
    async with plain_task_group() as tasks:
        transport = DaemonTransport(Home(home), tasks)
        await transport.connect()
        yield transport
        tasks.cancel_scope.cancel()


async def _greeted(home: Home, tasks: TaskGroup) -> Connection:
    """A connection to a daemon that is not about to end, served in ``tasks``."""
    replaced = False
    deadline = anyio.current_time() + START_SECONDS
    while anyio.current_time() < deadline:
        try:
            connection = await _served(await _reach(home), tasks)
            # Once: a daemon that this program starts cannot be older, so what answers then is as new as it gets.
            if replaced or not is_older(connection.peer.software, __version__):
                return connection
            replaced = True
            await connection.call(STOP, StopDaemon(), object)
            connection.close()
        except LinkLost:
            pass  # it is ending; the next one answers soon
        await anyio.sleep(_RETRY_SECONDS)
    raise DaemonUnavailable(f"the daemon of {home.root} ends again and again", hint=f"see {home.daemon_log}")


@asynccontextmanager
async def _connected(stream: SocketStream) -> AsyncIterator[Connection]:
    async with plain_task_group() as tasks:
        connection = await _served(stream, tasks)
        try:
            yield connection
        finally:
            connection.close()


async def _served(stream: SocketStream, tasks: TaskGroup) -> Connection:
    """A connection over ``stream``, served in ``tasks``, whose other end has said hello."""
    connection = Connection(stream, role=Role.CLIENT, hello=Hello(software=__version__))
    with anyio.move_on_after(GREETING_SECONDS):
        await tasks.start(connection.run, name="daemon connection")
        return connection
    raise DaemonUnavailable("the daemon does not answer", hint="it may be stopped or overloaded; see its log")


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
    command = [sys.executable, "-P", "-m", "pyro_async.runtime.daemon", "--home", str(home.root), "--detach"]
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
