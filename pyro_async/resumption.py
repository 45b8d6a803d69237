"""Asking for an operation again after its daemon was lost, without doing or delivering anything twice."""

from __future__ import annotations

import time

from msgspec.structs import replace

from pyro_async.calls import Call, CallEvent
from pyro_async.errors import LinkLost
from pyro_async.operations import (
    AttachExec,
    Event,
    ExecOutput,
    ExecStarted,
    ExecWorkspace,
    FollowLogs,
    ListEvents,
    LogDropped,
    LogEnded,
    LogOutput,
    LogStarted,
    Operation,
    OutputDropped,
    Params,
    WaitExec,
)

__all__ = ["Resumption"]


class Resumption:
    """One operation over as many connections as it takes.

    What only reads can be asked for again, from the cursor behind what was delivered. So can a command with an
    idempotency key, whose output then comes from the start once more; what the caller has already is left out.

    Args:
        operation: what is asked for.
        params: as the caller gave them.
        call: the caller's.

    Attributes:
        call: stands between the operation and the caller.
        steps: events delivered so far.
    """

    def __init__(self, operation: Operation, params: Params, call: Call) -> None:
        self._operation = operation
        self._asked = params
        self._deliver = call.emit
        self._began = time.monotonic()
        self._started: ExecStarted | None = None
        self._cursor = 0
        self._log_cursor: str | None = None
        self._event_id = 0
        self.steps = 0
        self.call = Call(self._emit, call.input)

    @property
    def possible(self) -> bool:
        """Whether the operation may be asked for again."""
        if isinstance(self._asked, ExecWorkspace):
            return self._asked.idempotency_key is not None and self.call.input is None
        return self._operation.read_only and self._operation.idempotent

    @property
    def params(self) -> Params:
        """What to ask for next."""
        params = self._asked
        if isinstance(params, AttachExec) and self._started is not None:
            return replace(params, cursor=self._cursor)
        if isinstance(params, FollowLogs) and self._log_cursor is not None:
            return replace(params, cursor=self._log_cursor)
        if isinstance(params, ListEvents) and self._event_id:
            return replace(params, after=self._event_id, limit=params.limit and max(1, params.limit - self.steps))
        if isinstance(params, WaitExec) and params.wait_seconds is not None:
            return replace(params, wait_seconds=max(0.0, params.wait_seconds - time.monotonic() + self._began))
        return params

    def explained(self, error: LinkLost) -> LinkLost:
        """``error`` with what the caller can do about it."""
        if self._started is not None:
            where = f"{self._started.workspace_id} {self._started.exec_id}"
            hint = f"the command may go on: `pyro workspace attach {where} --cursor {self._cursor}`"
        elif isinstance(self._asked, ExecWorkspace):
            hint = "`pyro workspace logs` tells whether it ran; with an idempotency key it can be asked for again"
        else:
            hint = "see whether it was done, then ask again"
        return LinkLost(f"the daemon was lost during {self._operation.name}", hint=hint)

    async def _emit(self, event: CallEvent) -> None:
        if isinstance(event, ExecStarted):
            if self._started is not None:
                return
            self._started, self._cursor = event, event.cursor
        elif isinstance(event, ExecOutput):
            if event.cursor <= self._cursor:
                return
            new = min(event.cursor - self._cursor, len(event.data))
            event = replace(event, data=event.data[-new:])
            self._cursor = event.cursor
        elif isinstance(event, OutputDropped):
            if event.cursor <= self._cursor:
                return
            self._cursor = event.cursor
        elif isinstance(event, LogStarted | LogOutput | LogDropped | LogEnded):
            self._log_cursor = event.cursor
        elif isinstance(event, Event):
            self._event_id = event.event_id
        self.steps += 1
        await self._deliver(event)
