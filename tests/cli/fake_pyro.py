"""A transport that answers from a script, and the ``pyro`` command on top of it as a process of its own.

``python -m tests.cli.fake_pyro ARGUMENTS`` is the real entry point; only the daemon is replaced.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio

from pyro_async.calls import Call
from pyro_async.errors import PyroError, WorkspaceNotFound
from pyro_async.operations import (
    CommandSummary,
    ExecOutput,
    ExecResult,
    ExecStarted,
    ExecWorkspace,
    Params,
    Result,
    RunInVm,
    StatusWorkspace,
    Workspace,
    WorkspaceList,
)

Answer = Callable[[Any, Call], Awaitable[Result]]

STARTED_AT = 1_700_000_000.0


class FakeTransport:
    """Answers each operation with what the test put into ``answers``, and keeps the parameters it was asked with."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Params]] = []
        self.answers: dict[str, Result | PyroError | Exception | Answer] = {}

    async def call(self, name: str, params: Params, call: Call) -> Result:
        self.asked.append((name, params))
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Result) else await answer(params, call)


def a_workspace(**changes: Any) -> Workspace:
    fields: dict[str, Any] = {
        "workspace_id": "0123456789ab",
        "name": "demo",
        "labels": {"team": "core"},
        "environment": "debian:12",
        "state": "started",
        "failure": None,
        "driver": "qemu/tcg",
        "vcpu_count": 1,
        "mem_mib": 512,
        "created_at": STARTED_AT,
        "last_activity_at": STARTED_AT,
        "command_count": 3,
        "last_command": CommandSummary(exec_id="e3", command=["ls", "a b"], exit_code=0, started_at=STARTED_AT),
    }
    return Workspace(**fields | changes)


def a_result(**changes: Any) -> ExecResult:
    fields: dict[str, Any] = {
        "workspace_id": "0123456789ab",
        "exec_id": "e1",
        "sequence": 1,
        "command": ["true"],
        "cwd": "/workspace",
        "started_at": STARTED_AT,
        "exit_code": 0,
        "duration_ms": 12.0,
    }
    return ExecResult(**fields | changes)


def printing(*pieces: tuple[str, bytes], **result: Any) -> Answer:
    """A command that writes these pieces to ``stdout`` or ``stderr`` and ends."""

    async def answer(params: Params, call: Call) -> Result:
        await call.emit(ExecStarted(workspace_id="0123456789ab", exec_id="e1", sequence=1, started_at=STARTED_AT))
        for stream, data in pieces:
            await call.emit(ExecOutput(stream="stdout" if stream == "stdout" else "stderr", data=data))
        return a_result(**result)

    return answer


async def act(params: ExecWorkspace | RunInVm, call: Call) -> Result:
    """Commands that processes under test run: ``cat``, ``yes``, ``forever``, ``stubborn``, ``true``."""
    word = params.command[0]

    async def write(data: bytes) -> None:
        await call.emit(ExecOutput(stream="stdout", data=data))

    if word == "cat":
        assert call.input is not None
        async for data in call.input:
            await write(data)
    elif word == "yes":
        while True:
            await write(b"y\n" * 32768)
    elif word in ("forever", "stubborn"):
        try:
            await write(b"begun\n")
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                if word == "stubborn":
                    await write(b"stopping\n")
                    await anyio.sleep_forever()
                await write(b"the tree is gone\n")
    elif word == "ignoring-input":
        await write(b"done\n")
    return a_result()


async def status(params: StatusWorkspace, call: Call) -> Result:
    """Knows every workspace but ``nope``."""
    if params.workspace == "nope":
        raise WorkspaceNotFound("there is no workspace 'nope'", hint="see `pyro workspace list`")
    return a_workspace()


def main() -> None:
    """Runs the entry point with a daemon that is :class:`FakeTransport`."""
    transport = FakeTransport()
    transport.answers = {
        "exec_workspace": act,
        "run_in_vm": act,
        "list_workspaces": WorkspaceList(
            workspaces=[a_workspace(), *(a_workspace(name=f"demo-{number}") for number in range(5000))]
        ),
        "status_workspace": status,
    }

    @asynccontextmanager
    async def daemon_transport(home: Path) -> AsyncIterator[FakeTransport]:
        yield transport

    async def daemon_status(home: Path) -> str:
        return "running"

    replaced = ModuleType("pyro_async.transport")
    replaced.daemon_transport = daemon_transport  # type: ignore[attr-defined]
    replaced.daemon_status = daemon_status  # type: ignore[attr-defined]
    sys.modules["pyro_async.transport"] = replaced

    from pyro_cli.main import main

    # The shell of a test runner may have left this ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


if __name__ == "__main__":
    main()
