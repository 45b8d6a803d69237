"""One running command: a task in its workspace's group that carries output from the guest into the journal.

The command's identity is its exec_id, not a connection: when the link breaks, the task attaches again by offset, so
that nothing is lost, doubled or run twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from pyro_async.errors import GuestUnresponsive, LinkLost, ProtocolError, PyroError
from pyro_async.faults import fault_point
from pyro_async.groups import plain_task_group
from pyro_async.operations import INLINE_OUTPUT_LIMIT, ExecResult
from pyro_async.runtime.link import Link
from pyro_async.runtime.output import Excerpt, Journal
from pyro_async.runtime.store import ExecRecord
from pyro_async.wire.codec import decode
from pyro_async.wire.connection import Data, End, Message, Stream, outcome
from pyro_async.wire.guest import STDERR, STDIN, STDOUT, Attach, Exec, ExecExit, ExecStarted

__all__ = ["CANCEL_GRACE", "Execution", "exec_result"]

#: How long after a command's timeout, which the agent keeps, its end must be known.
TIMEOUT_GRACE: Final = 30.0
#: How long the agent may take to confirm that a cancelled command's tree is gone.
CANCEL_GRACE: Final = 10.0


class Execution:
    """A command that runs.

    Args:
        record: what is stored of it; ``exit`` is filled in at the end.
        journal: where its output goes.
        call: starts it; None if an earlier process already did.

    Attributes:
        error: why it could not be run or followed to its end, None otherwise.
    """

    def __init__(self, record: ExecRecord, journal: Journal, call: Exec | None) -> None:
        self.record = record
        self.journal = journal
        self.error: PyroError | None = None
        self._call = call
        self._started = call is None
        self._stream: Stream | None = None
        self._attached = anyio.Event()
        self._known = anyio.Event()
        self._ended = anyio.Event()
        self._cancelled = False
        self._unacknowledged: deque[bytes] = deque()  # of stdin, oldest first
        self._stdin_begin = 0  # offset of the first of them
        self._stdin_base = 0  # offset at which the current stream began
        self._stdin_closed = False

    async def run(self, link: Link, save: Callable[[Execution], None]) -> None:
        """Follows the command to its end, over as many connections as it takes.

        Args:
            link: to the guest.
            save: records the end; called exactly once, before anyone who waits wakes.
        """
        seconds = math.inf if self._call is None else (self._call.timeout_seconds or math.inf) + TIMEOUT_GRACE
        try:
            with anyio.move_on_after(seconds) as overdue:
                await self._follow(link)
            if overdue.cancelled_caught:
                raise GuestUnresponsive("the guest has not ended a command whose time was up", hint="see its console")
        except PyroError as error:
            self.error = self.error or error
        finally:
            self._finish(save)

    async def _follow(self, link: Link) -> None:
        while self.record.exit is None:
            connection = await link.connection()
            try:
                async with plain_task_group() as tasks:
                    await self._pump(self._open(connection.open), tasks)
            except LinkLost:
                self._stream = None
                if self._attached.is_set():  # else somebody waits for this one
                    self._attached = anyio.Event()
            except ProtocolError as error:
                link.fail(error)
                raise

    def fail(self, error: PyroError) -> None:
        """Says why the command's end will never be known; its task is then cancelled."""
        self.error = self.error or error

    def _finish(self, save: Callable[[Execution], None]) -> None:
        """Records the end. A task cancelled without an error records none: a later runtime attaches again."""
        self.journal.close()
        try:
            if self.record.exit is None and self.error is None:
                self.error = LinkLost("the runtime is stopping", hint="the command goes on; ask again later")
            else:
                self.record.lost = self.record.exit is None
                save(self)
        except PyroError as error:
            self.error = self.error or error
        finally:
            self._known.set()
            self._ended.set()
            self._attached.set()

    def _open(self, open_stream: Callable[[str, object], Stream]) -> Stream:
        if not self._started and self._call is not None:
            return open_stream(Exec.method, self._call)
        counts = self.journal.counts
        attach = Attach(exec_id=self.record.exec_id, stdout_offset=counts[STDOUT], stderr_offset=counts[STDERR])
        return open_stream(Attach.method, attach)

    async def _pump(self, stream: Stream, tasks: TaskGroup) -> None:
        self._stream = stream
        if self._cancelled:
            stream.cancel()
        announced = False
        while True:
            item = await stream.receive()
            if isinstance(item, Data):
                if item.channel not in (STDOUT, STDERR):
                    raise ProtocolError(f"output on unknown channel {item.channel}")
                await self._keep(stream, item)
                stream.grant(len(item.data))
            elif isinstance(item, Message):
                if announced:
                    raise ProtocolError("the agent announced a command twice")
                announced = True
                self._announced(stream, decode(item.payload, ExecStarted), tasks)
                stream.grant(len(item.payload))
            elif isinstance(item, End):
                self.record.exit = outcome(item, ExecExit)
                fault_point("exec.exited")
                return

    async def _keep(self, stream: Stream, item: Data) -> None:
        """Stores output; where the host has no room for it, ends the command instead of losing some in silence."""
        if self.error is None:
            fault_point("exec.received")
            try:
                await self.journal.append(item.channel, item.data)
                fault_point("exec.kept")
            except PyroError as error:
                self.error = error
                stream.cancel()

    @property
    def started(self) -> bool:
        """Whether the agent ever confirmed that the command exists."""
        return self._started

    def _announced(self, stream: Stream, started: ExecStarted, tasks: TaskGroup) -> None:
        """Continues stdin where the agent has it, then lets writers go on."""
        self._started = True
        fault_point("exec.announced")
        self._known.set()
        self.journal.wake()
        self._drop_stdin(started.stdin_offset)
        self._stdin_base = self._stdin_begin
        if self._unacknowledged:
            # Not here: the command may want its output taken before it reads on.
            tasks.start_soon(self._send_again, stream)
        else:
            self._go_on(stream)

    async def _send_again(self, stream: Stream) -> None:
        for chunk in list(self._unacknowledged):
            await stream.send(chunk, STDIN)
        self._go_on(stream)

    def _go_on(self, stream: Stream) -> None:
        if self._stdin_closed:
            stream.send_eof()
        self._attached.set()

    # --- used by the caller's tasks ----------------------------------------------------------------------------------

    async def feed(self, source: AsyncIterator[bytes]) -> None:
        """Sends standard input until the source ends or the command does."""
        async for data in source:
            for start in range(0, len(data), _STDIN_CHUNK):
                await self._send_stdin(data[start : start + _STDIN_CHUNK])
            if self._ended.is_set():
                return
        self._stdin_closed = True
        if self._attached.is_set() and self._stream is not None:
            self._stream.send_eof()

    async def _send_stdin(self, chunk: bytes) -> None:
        await self._attached.wait()
        self._unacknowledged.append(chunk)
        stream = self._stream
        if stream is None or self._ended.is_set():
            return
        try:
            await stream.send(chunk, STDIN)
        except LinkLost:
            return  # sent again by the next attach, or the command has ended
        fault_point("exec.stdin")
        if stream is self._stream:
            self._drop_stdin(self._stdin_base + stream.granted)

    def _drop_stdin(self, offset: int) -> None:
        """Forgets the stdin before ``offset``, which the agent has taken over."""
        while self._stdin_begin < offset and self._unacknowledged:
            chunk = self._unacknowledged.popleft()
            rest = chunk[offset - self._stdin_begin :]
            self._stdin_begin += len(chunk) - len(rest)
            if rest:
                self._unacknowledged.appendleft(rest)

    def cancel(self) -> None:
        """Asks the agent to kill the command's tree. Does nothing once it has ended."""
        self._cancelled = True
        if self._stream is not None and not self._ended.is_set():
            self._stream.cancel()

    @property
    def input_complete(self) -> bool:
        """Whether it reads no standard input, or has been given all of it."""
        return self._stdin_closed or not self.record.stdin

    async def wait_started(self) -> None:
        """Waits until the guest has the command.

        Raises:
            PyroError: the guest refused it, or is gone.
        """
        if not self._started:
            await self._known.wait()
        if self.error is not None:
            raise self.error

    async def wait(self) -> None:
        """Waits for the end.

        Raises:
            PyroError: the command could not be followed to its end.
        """
        await self._ended.wait()
        if self.error is not None:
            raise self.error

    async def cancel_and_wait(self) -> None:
        """Kills the command and waits, bounded and shielded, for the agent's confirmation.

        Raises:
            GuestUnresponsive: it did not come.
        """
        self.cancel()
        fault_point("cancel.asked")
        with anyio.move_on_after(CANCEL_GRACE, shield=True):
            await self._ended.wait()
            fault_point("cancel.confirmed")
            return
        raise GuestUnresponsive(
            f"the guest has not confirmed within {CANCEL_GRACE:g} s that command {self.record.exec_id} is gone",
            hint="stop or delete the workspace",
        )


#: Standard input is sent in pieces of this size, so that what is kept for a reconnect stays bounded by the window.
_STDIN_CHUNK: Final = 64 * 1024


def exec_result(record: ExecRecord, journal: Journal, limit: int = INLINE_OUTPUT_LIMIT) -> ExecResult:
    """The public result of a command, with at most ``limit`` bytes of each output."""
    excerpts = {STDOUT: Excerpt(limit), STDERR: Excerpt(limit)}
    for piece in journal.records():
        excerpts[piece.channel].add(piece.data)
    end = record.exit
    return ExecResult(
        workspace_id=record.workspace_id,
        exec_id=record.exec_id,
        sequence=record.sequence,
        command=record.command,
        cwd=record.cwd,
        started_at=record.started_at,
        exit_code=end.exit_code if end else None,
        signal=end.signal if end else None,
        timed_out=end.timed_out if end else False,
        cancelled=end.cancelled if end else False,
        cause="lost" if record.lost else end.cause if end else None,
        stdout=excerpts[STDOUT].text(),
        stderr=excerpts[STDERR].text(),
        stdout_truncated=excerpts[STDOUT].truncated or journal.begin > 0,
        stderr_truncated=excerpts[STDERR].truncated or journal.begin > 0,
        duration_ms=round(end.duration_seconds * 1000, 3) if end else 0.0,
    )
