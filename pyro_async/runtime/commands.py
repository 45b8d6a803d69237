"""The commands of one workspace: those that run, and the history of those that ran."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from pyro_async.errors import ExecNotFound, InvalidArgument, LinkLost, PyroError
from pyro_async.faults import fault_point
from pyro_async.operations import INLINE_OUTPUT_LIMIT, CommandSummary, ExecResult, ExecWorkspace
from pyro_async.runtime.activity import Activity
from pyro_async.runtime.events import Happened
from pyro_async.runtime.execution import Execution, exec_result
from pyro_async.runtime.link import Link
from pyro_async.runtime.output import OutputStore
from pyro_async.runtime.store import ExecRecord, Store
from pyro_async.wire.codec import encode
from pyro_async.wire.connection import Connection
from pyro_async.wire.frames import MAX_PAYLOAD
from pyro_async.wire.guest import Exec, Forget, Running, RunningExec

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
        self._store.save_exec(record, self._happened("exec.started", exec_id=record.exec_id, sequence=record.sequence))
        fault_point("exec.recorded")
        self._last = record
        self.last_activity_at = record.started_at
        execution = Execution(record, self._output.journal(record.exec_id, writing=True), call)
        self._follow(execution, tasks, link)
        return execution

    def running(self, exec_id: str) -> Execution | None:
        """A command that still runs, or None."""
        return self._running.get(exec_id)

    def result(self, exec_id: str, limit: int = INLINE_OUTPUT_LIMIT) -> ExecResult:
        """The result so far of a command that runs or has ended.

        Raises:
            ExecNotFound: there is no such command.
        """
        execution = self._running.get(exec_id)
        record = execution.record if execution else self._store.exec(self._workspace_id, exec_id)
        if record is None:
            raise ExecNotFound(f"there is no command {exec_id!r}", hint="see `pyro workspace logs`")
        return exec_result(record, execution.journal if execution else self._output.journal(exec_id), limit)

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

    # --- with the machine's life -------------------------------------------------------------------------------------

    async def resume(self, connection: Connection, tasks: TaskGroup, link: Link) -> None:
        """Takes up the commands an earlier process left: those the agent still holds are followed, others are lost."""
        held = {entry.exec_id for entry in await connection.call(Running.method, Running(), list[RunningExec])}
        for record in self._store.running_execs(self._workspace_id):
            if record.exec_id in held:
                self._follow(Execution(record, self._output.journal(record.exec_id, writing=True), None), tasks, link)
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
        record.lost = True
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

    def _newest(self) -> ExecRecord | None:
        return next(iter(self._store.newest_execs(self._workspace_id, 1)), None)


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
