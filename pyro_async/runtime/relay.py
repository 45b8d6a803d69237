"""A client and a command: what the command prints goes to the client, what the client sends to the command.

The command belongs to its workspace; here is decided what becomes of it when its client goes.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Literal

import anyio

from pyro_async.calls import Call
from pyro_async.errors import InvalidArgument
from pyro_async.groups import plain_task_group
from pyro_async.operations import (
    AttachExec,
    ExecOutput,
    ExecResult,
    ExecStarted,
    ExecWorkspace,
    OutputDropped,
    WaitExec,
)
from pyro_async.runtime.execution import Execution
from pyro_async.runtime.output import Journal
from pyro_async.runtime.workspace import Workspace
from pyro_async.wire.guest import STDOUT

__all__ = ["attach", "check_cursor", "execute", "wait"]


async def execute(workspace: Workspace, params: ExecWorkspace, call: Call) -> ExecResult:
    """Runs a command, or finds the one that has the caller's idempotency key, and relays it.

    A caller who cancels kills the command. One who is lost kills it too, unless it can come back: a detached command
    and one with a key go on, but for one whose input the caller has not sent completely.
    """
    if params.detach and params.stdin:
        raise InvalidArgument("a detached command has no standard input", hint="put the input into a file first")
    commands, source = workspace.commands, None
    record = commands.retried(params)
    if record is None:
        execution: Execution | None = workspace.start_exec(params)
        assert execution is not None
        record, source = execution.record, call.input if params.stdin else None
    else:
        execution = commands.running(record.exec_id)
    try:
        if execution is not None and params.detach:
            await execution.wait_started()
        elif not params.detach:
            async with plain_task_group() as tasks:
                if execution is not None and source is not None:
                    tasks.start_soon(execution.feed, source, name="stdin")
                await _relay(workspace, record.exec_id, 0, call)
                tasks.cancel_scope.cancel()
    except BaseException:  # the caller is gone, in whatever way; or the command has failed, and has ended
        can_come_back = params.detach or params.idempotency_key is not None
        if execution is not None and not (
            can_come_back and call.vanished() and (source is None or execution.input_complete)
        ):
            await execution.cancel_and_wait()
        raise
    return commands.result(record.exec_id)


async def attach(workspace: Workspace, params: AttachExec, call: Call) -> ExecResult:
    """Relays the output of a command from a cursor on until its end.

    Raises:
        ExecNotFound: there is no such command.
        InvalidArgument: the cursor is behind the end.
    """
    record = workspace.commands.record(params.exec_id)
    check_cursor(workspace.commands.journal(record.exec_id), params.cursor)
    await _relay(workspace, record.exec_id, params.cursor, call)
    return workspace.commands.result(record.exec_id)


async def wait(workspace: Workspace, params: WaitExec) -> ExecResult:
    """Waits for a command's end, or for its time to be up; raises ExecNotFound."""
    execution = workspace.commands.running(params.exec_id)
    if execution is not None:
        with anyio.move_on_after(params.wait_seconds):
            await execution.wait()
    return workspace.commands.result(params.exec_id)


def check_cursor(journal: Journal, cursor: int) -> None:
    """Raises InvalidArgument if there is no such place yet."""
    if cursor > journal.end:
        raise InvalidArgument(
            f"cursor {cursor} is behind the end of the output, {journal.end}", hint="use a cursor that pyro returned"
        )


async def _relay(workspace: Workspace, exec_id: str, cursor: int, call: Call) -> None:
    commands = workspace.commands
    execution, journal, record = commands.running(exec_id), commands.journal(exec_id), commands.record(exec_id)
    await call.emit(
        ExecStarted(
            workspace_id=record.workspace_id,
            exec_id=exec_id,
            sequence=record.sequence,
            started_at=record.started_at,
            cursor=cursor,
        )
    )
    async with aclosing(journal.follow(cursor)) as pieces:
        async for piece in pieces:
            if (begin := piece.end - len(piece.data)) > cursor:
                await call.emit(OutputDropped(cursor=begin))
            cursor = piece.end
            stream: Literal["stdout", "stderr"] = "stdout" if piece.channel == STDOUT else "stderr"
            await call.emit(ExecOutput(stream=stream, data=piece.data, cursor=cursor))
    if cursor < journal.end:
        await call.emit(OutputDropped(cursor=journal.end))
    if execution is not None:
        await execution.wait()
