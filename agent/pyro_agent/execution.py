"""One command, from its start until the host has recorded how it ended.

Its task belongs to the agent and not to a connection, so it survives the loss of the link.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from typing import Final

import anyio

from pyro_agent.output import RetainedOutput
from pyro_agent.pipes import Pipes
from pyro_agent.spawn import Command, default_environment
from pyro_agent.system import System, Tree
from pyro_async.errors import InvalidArgument, LinkLost
from pyro_async.wire.connection import WINDOW, Data, Eof, Stream
from pyro_async.wire.guest import STDERR, STDIN, Exec, ExecExit, ExecStarted
from pyro_async.wire.pulse import Pulse

__all__ = ["DRAIN_GRACE", "RETAINED_LIMIT", "Execution"]

#: How long after the main process's exit the output of what it left behind is still taken, in seconds.
DRAIN_GRACE: Final = 0.1
#: Bytes of output held for the host: a window on its way and another being read, so that neither waits for the other.
#: Above the window also for the reason RetainedOutput gives.
RETAINED_LIMIT: Final = 2 * WINDOW

_TIMED_OUT: Final = "timed out"
_CANCELLED: Final = "cancelled"


class Execution:
    """A command. Constructing it starts the process; :meth:`run` must then supervise it.

    Args:
        request: what to run.
        system: the machine to run it on.

    Attributes:
        exec_id: the host's name for it.
        pid: its process, 0 if none could be started.
        exit: how it ended, None until its output is complete.

    Raises:
        InvalidArgument: the request names a user or a directory that does not exist, or is too large.
    """

    def __init__(self, request: Exec, system: System) -> None:
        if not request.argv or not request.argv[0]:
            raise InvalidArgument("the command is empty")
        self.exec_id = request.exec_id
        self.pid = 0
        self.exit: ExecExit | None = None
        self._system = system
        self._output = RetainedOutput(RETAINED_LIMIT)
        self._changed = Pulse()
        self._over = anyio.Event()
        self._attachment: anyio.CancelScope | None = None
        self._kill_reason = ""
        self._wait_status: int | None = None
        self._deadline = math.inf
        account = system.accounts.find(request.user)
        environment = {**default_environment(account, request.cwd), **request.env}
        self._pipes = Pipes(stdin=request.stdin)
        self._tree: Tree | None = None
        self.started_at = time.time()
        self._began = self._ended = time.monotonic()
        try:
            self._tree = system.tree()
            ends = self._pipes.child_ends
            self.pid = self._tree.spawn(Command(request.argv, environment, request.cwd, account, *ends))
            system.processes.add(self.pid)
            self._pipes.watch(self.pid)
        except OSError as error:
            self._abandon()
            self._not_runnable(request.argv[0], error)
        except BaseException:
            self._abandon()
            raise
        finally:
            self._pipes.close_child_ends()
        if request.timeout_seconds is not None and self.exit is None:
            self._deadline = anyio.current_time() + request.timeout_seconds

    def _abandon(self) -> None:
        self._pipes.close()
        if self._tree is not None:
            self._tree.release()

    def _not_runnable(self, program: str, error: OSError) -> None:
        """Ends the command as a shell would."""
        self._output.append(STDERR, f"pyro: cannot run {program!r}: {error.strerror}\n".encode(errors="replace"))
        self._over.set()
        self.exit = ExecExit(exit_code=127 if error.errno == errno.ENOENT else 126)

    @property
    def retained(self) -> int:
        """Bytes of output held in memory."""
        return self._output.retained

    @property
    def attached(self) -> bool:
        """Whether a stream of the host takes the output."""
        return self._attachment is not None

    @property
    def stdin_offset(self) -> int:
        """Bytes of standard input taken over so far."""
        return self._pipes.stdin.offset if self._pipes.stdin is not None else 0

    async def wait_over(self) -> None:
        """Waits until ``exit`` is known."""
        await self._over.wait()

    def cancel(self) -> None:
        """Kills the whole tree; does nothing once the main process has ended. Does not block."""
        self._kill(_CANCELLED)

    # --- supervision -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Collects the output until the command is over; then discards what background processes still write."""
        if self.exit is not None:
            return
        assert self._tree is not None
        try:
            try:
                await self._collect()
                if self._kill_reason:
                    await self._tree.wait_empty()
                self.exit = self._verdict(self._tree)
                self._over.set()
                self._changed.wake()
            finally:
                self._tree.release()
            self._pipes.resume()
            while self._pipes.open:  # closing instead would kill them by SIGPIPE
                await self._pipes.wait()
                self._pipes.read(RETAINED_LIMIT)
        finally:
            self._pipes.close()

    async def _collect(self) -> None:
        pipes = self._pipes
        owed = math.inf  # bytes still to read; known when the grace for what was left behind is over
        while self._wait_status is None or (pipes.open and owed > 0):
            if not await pipes.wait(self._deadline):
                self._deadline = math.inf
                if self._wait_status is None:
                    self._kill(_TIMED_OUT)
                else:
                    owed = pipes.backlog()
                continue
            owed -= self._take()
            if pipes.exited and self._wait_status is None:
                self._collect_status()
                self._take()  # what is there already, or the end of it: nothing to wait for

    def _take(self) -> int:
        """Moves output from the pipes to the host's side; returns its size."""
        size = 0
        for channel, data in self._pipes.read(self._output.room):
            self._output.append(channel, data)
            size += len(data)
        if size:
            self._changed.wake()
        if self._output.full:
            self._pipes.pause()
        return size

    def _collect_status(self) -> None:
        self._wait_status = self._system.processes.collect(self.pid)
        if self._wait_status is not None:
            self._ended = time.monotonic()
            self._pipes.forget_process()
            self._deadline = anyio.current_time() + DRAIN_GRACE

    def _kill(self, reason: str) -> None:
        over = self.exit is not None or self._wait_status is not None or self._kill_reason
        if not over and self._tree is not None and not self._system.processes.ended(self.pid):
            self._kill_reason = reason
            self._tree.kill()

    def _verdict(self, tree: Tree) -> ExecExit:
        assert self._wait_status is not None
        code = os.waitstatus_to_exitcode(self._wait_status)
        number = -code if code < 0 else None
        killed = self._kill_reason if number == signal.SIGKILL else ""
        cause = None
        if tree.oom_kills():
            cause = "oom"
        elif code and not killed and self._system.disk_full():
            cause = "enospc"
        return ExecExit(
            exit_code=124 if killed == _TIMED_OUT else 128 + number if number else code,
            signal=number,
            timed_out=killed == _TIMED_OUT,
            cancelled=killed == _CANCELLED,
            cause=cause,
            duration_seconds=self._ended - self._began,
        )

    # --- the host's side ---------------------------------------------------------------------------------------------

    async def attach(
        self, stream: Stream, stdout_offset: int | None = None, stderr_offset: int | None = None
    ) -> ExecExit:
        """Serves a stream until the command has ended and all output is sent; takes over from an earlier stream.

        Args:
            stream: the host's stream.
            stdout_offset: bytes of STDOUT the host has stored; None to send all that is retained.
            stderr_offset: the same for STDERR.

        Raises:
            InvalidArgument: an offset is not among what is retained.
            LinkLost: a later stream took over.
        """
        self._output.rewind(stdout_offset, stderr_offset)
        if self._attachment is not None:
            self._attachment.cancel()
        scope = self._attachment = anyio.CancelScope()
        stream.on_cancel = self.cancel
        if stream.cancelled:
            self.cancel()
        ended: ExecExit | None = None
        try:
            with scope:
                if self._pipes.stdin is None or self.exit is not None:
                    ended = await self._deliver(stream, scope)
                else:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._feed, stream, name=f"stdin {self.exec_id}")
                        ended = await self._deliver(stream, scope)
                        tasks.cancel_scope.cancel()
        finally:
            if self._attachment is scope:
                self._attachment = None
        if ended is None:
            raise LinkLost("another stream has taken over this command")
        return ended

    async def _deliver(self, stream: Stream, scope: anyio.CancelScope) -> ExecExit | None:
        """Sends output and returns the exit; None if another stream took over, or this one cannot take more."""
        output = self._output
        started = ExecStarted(pid=self.pid, started_at=self.started_at, stdin_offset=self.stdin_offset)
        try:
            output.sent_message(await stream.send_message(started))
            while self._attachment is scope:
                output.acknowledge(stream.granted)
                if self._pipes.paused and not output.full:
                    self._pipes.resume()
                chunk = output.take()
                if chunk is not None:
                    await stream.send(chunk[1], chunk[0])
                elif self.exit is not None:
                    return self.exit
                else:
                    await self._changed.wait()
        except LinkLost:
            pass
        return None

    async def _feed(self, stream: Stream) -> None:
        stdin = self._pipes.stdin
        assert stdin is not None
        try:
            while True:
                item = await stream.receive()
                if isinstance(item, Data) and item.channel == STDIN:
                    await stdin.write(item.data)
                    stream.grant(len(item.data))
                elif isinstance(item, Eof):
                    stdin.close()
                    return
        except LinkLost:
            return
