"""The commands of one workspace: those that run, and the history of those that ran."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from pyro_async.errors import Conflict, ExecNotFound, InvalidArgument, LinkLost, PyroError
from pyro_async.faults import fault_point
from pyro_async.operations import INLINE_OUTPUT_LIMIT, CommandSummary, ExecResult, ExecWorkspace
from pyro_async.runtime.activity import Activity
from pyro_async.runtime.events import Happened
from pyro_async.runtime.execution import Execution, exec_result
from pyro_async.runtime.link import Link
from pyro_async.runtime.output import Journal, OutputStore
from pyro_async.runtime.store import ExecRecord, Store
from pyro_async.wire.codec import encode
from pyro_async.wire.connection import Connection
from pyro_async.wire.frames import MAX_PAYLOAD
from pyro_async.wire.guest import Exec, Forget, Running, RunningExec
from pyro_async.wire.pulse import Pulse

__all__ = ["Commands"]

#: Encoded size of the commands that are told at once.
_HISTORY_BYTES: Final = MAX_PAYLOAD // 2
#: How long ended commands are gathered before the agent is told that their ends are recorded.
_FORGET_DELAY: Final = 0.25


class Commands:
    """Starts commands, follows them to their ends and answers for them afterwards.

    Args:
        workspace_id: whose commands these are.
        directory: holds their output.
        store: where they are recorded.
        activity: held while any of them runs.

    Attributes:
        last_activity_at: when a command last started or ended, seconds since the epoch; 0 if none has.
        closed: the workspace is being deleted, so that nothing will run any more.
    """

    def __init__(self, workspace_id: str, directory: Path, store: Store, activity: Activity) -> None:
        self._workspace_id = workspace_id
        self._store = store
        self._activity = activity
        self._output = OutputStore(directory)
        self._running: dict[str, Execution] = {}
        self._last = self._newest()
        self._forgettable: list[str] = []
        self._ended = anyio.Event()
        self.last_activity_at = self._last.started_at if self._last else 0.0
        self.closed = False

    @property
    def count(self) -> int:
        """How many commands there have been."""
        return self._last.sequence if self._last else 0

    @property
    def running_count(self) -> int:
        """How many run at this moment."""
        return len(self._running)

    def summary(self) -> CommandSummary | None:
        """The last command in short."""
        if self._last is None:
            return None
        return CommandSummary(
            exec_id=self._last.exec_id,
            command=self._last.command,
            exit_code=self._last.exit.exit_code if self._last.exit else None,
            started_at=self._last.started_at,
        )

    def start(self, params: ExecWorkspace, tasks: TaskGroup, link: Link) -> Execution:
        """Starts a command in a task of its own; does not wait for anything.

        Raises:
            InvalidArgument: a string cannot be passed to a program.
            HostDiskFull: it cannot be recorded.
        """
        argv = ["/bin/sh", "-c", params.command] if isinstance(params.command, str) else params.command
        _refuse_nul(argv, params.cwd, params.env)
        record = ExecRecord(
            workspace_id=self._workspace_id,
            exec_id=os.urandom(6).hex(),
            sequence=self.count + 1,
            command=params.command,
            cwd=params.cwd,
            started_at=time.time(),
            stdin=params.stdin,
            idempotency_key=params.idempotency_key,
            fingerprint=_fingerprint(params),
        )
        call = Exec(
            exec_id=record.exec_id,
            argv=argv,
            cwd=params.cwd,
            env=params.env,
            user=params.user,
            stdin=params.stdin,
            timeout_seconds=params.timeout_seconds,
        )
        if (params.detach or params.idempotency_key) and not params.stdin:
            record.call = call  # the next process starts it if this one dies before the guest has it
        self._store.save_exec(record, self._happened("exec.started", exec_id=record.exec_id, sequence=record.sequence))
        fault_point("exec.recorded")
        self._last = record
        self.last_activity_at = record.started_at
        execution = Execution(record, self._output.journal(record.exec_id, writing=True), call)
        self._follow(execution, tasks, link)
        return execution

    def retried(self, params: ExecWorkspace) -> ExecRecord | None:
        """The command that already has the idempotency key in ``params``, if there is one.

        Raises:
            Conflict: that is another command.
        """
        if params.idempotency_key is None:
            return None
        record = self._store.keyed_exec(self._workspace_id, params.idempotency_key)
        if record is not None and record.fingerprint != _fingerprint(params):
            raise Conflict(
                f"the idempotency key {params.idempotency_key!r} belongs to another command, {record.exec_id}",
                hint="use one key for one command with its cwd, environment and user",
            )
        return record

    def running(self, exec_id: str) -> Execution | None:
        """A command that still runs, or None."""
        return self._running.get(exec_id)

    def record(self, exec_id: str) -> ExecRecord:
        """What is known of a command that runs or has ended.

        Raises:
            ExecNotFound: there is no such command.
        """
        execution = self._running.get(exec_id)
        record = execution.record if execution else self._store.exec(self._workspace_id, exec_id)
        if record is None:
            raise ExecNotFound(f"there is no command {exec_id!r}", hint="see `pyro workspace logs`")
        return record

    def journal(self, exec_id: str) -> Journal:
        """The output of a command; raises ExecNotFound."""
        execution = self._running.get(exec_id)
        return execution.journal if execution else self._output.journal(exec_id, written=self.record(exec_id).written)

    def result(self, exec_id: str, limit: int = INLINE_OUTPUT_LIMIT) -> ExecResult:
        """The result so far of a command that runs or has ended; raises ExecNotFound."""
        return exec_result(self.record(exec_id), self.journal(exec_id), limit)

    def history(self, count: int, limit: int) -> list[ExecResult]:
        """The newest ``count`` commands, oldest first, with at most ``limit`` bytes of each output.

        Fewer if they would not fit into one message.
        """
        entries: list[ExecResult] = []
        room = _HISTORY_BYTES
        for record in reversed(self._store.newest_execs(self._workspace_id, count)):
            entry = self.result(record.exec_id, limit)
            room -= len(encode(entry))
            if room < 0 and entries:
                break
            entries.append(entry)
        return entries[::-1]

    # --- the log of all of them --------------------------------------------------------------------------------------

    @property
    def news(self) -> Pulse:
        """Wakes whenever a command starts, prints or ends, and when the workspace is deleted."""
        return self._output.news

    def following(self, sequence: int) -> ExecRecord | None:
        """The first command after ``sequence``, once the guest has it: before, it may yet be refused and forgotten."""
        record = self._store.next_exec(self._workspace_id, sequence)
        execution = self._running.get(record.exec_id) if record else None
        if execution is None:
            return record
        return execution.record if execution.started else None

    def before_newest(self, count: int) -> int:
        """The sequence number before the newest ``count`` commands."""
        newest = self._store.newest_execs(self._workspace_id, count)
        return newest[0].sequence - 1 if newest else self.count

    def at(self, sequence: int) -> ExecRecord | None:
        """The command of this sequence number, or None."""
        record = self.following(sequence - 1)
        return record if record and record.sequence == sequence else None

    def close(self) -> None:
        """The workspace is being deleted."""
        self.closed = True
        self.news.wake()

    # --- with the machine's life -------------------------------------------------------------------------------------

    async def resume(self, connection: Connection, tasks: TaskGroup, link: Link) -> None:
        """Takes up the commands an earlier process left: those the agent still holds are followed, others are lost.

        The agent holds whatever it was ever told to run until its end is recorded. One that it does not hold has
        never run; if its client need not be there for it, it is started now.
        """
        held = {entry.exec_id for entry in await connection.call(Running.method, Running(), list[RunningExec])}
        for record in self._store.running_execs(self._workspace_id):
            call = None if record.exec_id in held else record.call
            if record.exec_id in held or call:
                self._follow(Execution(record, self._output.journal(record.exec_id, writing=True), call), tasks, link)
            else:
                self._lose(record)

    async def acknowledge(self, link: Link) -> None:
        """Tells the agent, in batches, which ends are recorded, so that it need not keep them any longer."""
        while True:
            await self._ended.wait()
            await anyio.sleep(_FORGET_DELAY)
            self._ended = anyio.Event()
            batch, self._forgettable = self._forgettable, []
            connection = await link.connection()
            try:
                await connection.call(Forget.method, Forget(exec_ids=batch), object)
            except LinkLost:
                self._forgettable += batch
                self._ended.set()

    def fail(self, error: PyroError) -> None:
        """The machine is going: whatever still runs ends with ``error``, once its task is cancelled."""
        for execution in list(self._running.values()):
            execution.fail(error)

    def lose(self) -> None:
        """The machine has gone with the process that followed its commands: their ends will never be known."""
        for record in self._store.running_execs(self._workspace_id):
            self._lose(record)

    def _lose(self, record: ExecRecord) -> None:
        record.lost, record.call = True, None
        record.written = self._output.journal(record.exec_id).written
        self._store.save_exec(record, self._ended_as(record))
        fault_point("exec.lost")

    def _ended_as(self, record: ExecRecord) -> Happened:
        end = record.exit
        return self._happened(
            "exec.ended",
            exec_id=record.exec_id,
            exit_code=end.exit_code if end else None,
            timed_out=end is not None and end.timed_out,
            cancelled=end is not None and end.cancelled,
            cause=end.cause if end else "lost",
        )

    def _happened(self, kind: str, **detail: str | int | None) -> Happened:
        return Happened(kind, self._workspace_id, dict(detail))

    def _follow(self, execution: Execution, tasks: TaskGroup, link: Link) -> None:
        exec_id = execution.record.exec_id
        self._running[exec_id] = execution
        self._activity.touch()
        tasks.start_soon(self._run, execution, link, name=f"exec {exec_id}")

    async def _run(self, execution: Execution, link: Link) -> None:
        with self._activity.hold():
            await execution.run(link, self._save)

    def _save(self, execution: Execution) -> None:
        """Records an end. A command the guest refused to run is the caller's error and not part of the history."""
        record = execution.record
        record.call, record.written = None, execution.journal.written
        self._running.pop(record.exec_id, None)
        self.last_activity_at = time.time()
        if isinstance(execution.error, InvalidArgument) and not execution.started:
            self._store.delete_exec(record, self._happened("exec.refused", exec_id=record.exec_id))
            fault_point("exec.refused")
            if self._last is record:
                self._last = self._newest()
        else:
            self._store.save_exec(record, self._ended_as(record))
            fault_point("exec.finished")
            self._forgettable.append(record.exec_id)
            self._ended.set()
        self.news.wake()

    def _newest(self) -> ExecRecord | None:
        return next(iter(self._store.newest_execs(self._workspace_id, 1)), None)


def _fingerprint(params: ExecWorkspace) -> bytes:
    """Of what a command is, apart from how its caller waits for it."""
    what = (params.command, params.cwd, sorted(params.env.items()), params.user, params.stdin)
    return hashlib.blake2b(encode(what), digest_size=16).digest()


def _refuse_nul(argv: Iterable[str], cwd: str, env: Mapping[str, str]) -> None:
    for place, text in (
        *((f"argument {index}", argument) for index, argument in enumerate(argv)),
        ("cwd", cwd),
        *((f"environment variable {name}", value) for name, value in env.items()),
    ):
        if "\0" in text:
            raise InvalidArgument(
                f"{place} contains a NUL byte, which no program can receive", hint="pass it through stdin or a file"
            )
