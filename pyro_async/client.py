"""AsyncPyro: one typed async method per operation."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar, cast

from anyio.abc import TaskGroup

from pyro_async.calls import Call, CallEvent, Emit, Transport, checked
from pyro_async.errors import PyroError
from pyro_async.exec_stream import ExecStream, byte_source
from pyro_async.groups import plain_task_group
from pyro_async.home import default_home
from pyro_async.operations import (
    WORKSPACE_PATH,
    AttachExec,
    BuildEnvironment,
    CancelExec,
    CreateWorkspace,
    Deleted,
    DeleteWorkspace,
    Environment,
    EnvironmentList,
    Event,
    EventList,
    ExecPage,
    ExecResult,
    ExecWorkspace,
    FollowLogs,
    InspectEnvironment,
    ListEnvironments,
    ListEvents,
    ListWorkspaces,
    LogEvent,
    LogsFollowed,
    LogsWorkspace,
    Params,
    Progress,
    Pruned,
    PruneEnvironments,
    ReadExec,
    Reaped,
    ReapExpired,
    Result,
    RunInVm,
    StartWorkspace,
    StatusWorkspace,
    StopWorkspace,
    UpdateWorkspace,
    WaitExec,
    Workspace,
    WorkspaceList,
    WorkspaceLogs,
)
from pyro_async.streams import OperationStream

__all__ = ["AsyncPyro", "OnEvent", "OnProgress", "Stdin"]

R = TypeVar("R", bound=Result)

#: Called for every step of a longer operation; must not block.
OnProgress = Callable[[Progress], None]
#: Called for every event of a command; must not block. A coroutine is awaited, which slows a fast command down.
OnEvent = Callable[[CallEvent], Awaitable[None] | None]
#: Standard input: all at once, or in pieces as they become available.
Stdin = bytes | str | AsyncIterable[bytes] | None


class AsyncPyro:
    """A client of pyro, for asyncio and trio.

    ``async with AsyncPyro() as client`` talks to the home's daemon and starts it if need be. Every method raises a
    subclass of :class:`~pyro_async.errors.PyroError` when it fails, never an exception group. Cancelling a method
    cancels the operation: around a command that kills its whole process tree in the guest before the cancellation goes
    on.

    Args:
        home: directory of all state; ``$PYRO_HOME`` or the platform's state directory by default.
        embedded: run the runtime in this process instead of talking to the daemon. The home must not be in use; VMs are
            stopped on leaving.
        transport: what carries operations, instead of either; entered and left by the caller.
    """

    def __init__(
        self, home: str | os.PathLike[str] | None = None, *, embedded: bool = False, transport: Transport | None = None
    ) -> None:
        self.home: Final = Path(home) if home is not None else default_home()
        self._embedded = embedded
        self._transport = transport
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._transport is None:
                # Imported here: each costs what the other's users need not pay.
                if self._embedded:
                    from pyro_async.runtime.embedded import embedded_transport as connect
                else:
                    from pyro_async.transport import daemon_transport as connect
                self._transport = await stack.enter_async_context(connect(self.home))
            self._tasks = await stack.enter_async_context(plain_task_group())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()  # streams still open belong to nobody any more
        return await self._stack.__aexit__(kind, error, traceback)

    async def _call(self, name: str, params: Params, kind: type[R], call: Call | None = None) -> R:
        self._owner()
        assert self._transport is not None
        return cast("R", await self._transport.call(name, checked(params), call or Call()))

    def _owner(self) -> TaskGroup:
        """The group of the tasks behind streams."""
        if self._tasks is None:
            raise PyroError("the client is not open", hint="use it as `async with AsyncPyro() as client`")
        return self._tasks

    # --- workspaces --------------------------------------------------------------------------------------------------

    async def create_workspace(
        self,
        environment: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        vcpu_count: int = 1,
        mem_mib: int = 512,
        ttl_seconds: int | None = None,
        idle_stop_seconds: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Workspace:
        """Creates a workspace and waits until commands can run in it.

        Args:
            environment: such as ``debian:12``; built first if it is missing.
            name: unique name, 1 to 64 of ``A-Z a-z 0-9 . _ -``.
            labels: up to 256 characters each, for the caller's own use.
            vcpu_count: 1 to 8.
            mem_mib: memory in MiB, 128 to 32768.
            ttl_seconds: delete it after so long, 60 s or more; None keeps it until somebody deletes it.
            idle_stop_seconds: stop it, disk kept, after so long without a command, a connection or a busy guest CPU,
                60 s or more; :meth:`start_workspace` brings it back. None never does.
            on_progress: called for every step.

        Raises:
            Conflict: the name is taken. EnvironmentNotFound, EnvironmentBuildFailed, SetupRequired, DriverUnavailable,
            HostDiskFull, HostMemoryFull: nothing was made. GuestUnresponsive, WorkspaceFailed: the guest did not come
            up; nothing stays behind.
        """
        params = CreateWorkspace(
            environment=environment,
            name=name,
            labels=dict(labels or {}),
            vcpu_count=vcpu_count,
            mem_mib=mem_mib,
            ttl_seconds=ttl_seconds,
            idle_stop_seconds=idle_stop_seconds,
        )
        return await self._call("create_workspace", params, Workspace, _reporting(on_progress))

    async def list_workspaces(self) -> WorkspaceList:
        """Lists all workspaces, oldest first."""
        return await self._call("list_workspaces", ListWorkspaces(), WorkspaceList)

    async def status_workspace(self, workspace: str) -> Workspace:
        """Describes a workspace, given by id or name, and what it uses if it runs. Raises WorkspaceNotFound.

        A guest that does not answer delays this by two seconds at most; ``resources.guest`` is None then.
        """
        return await self._call("status_workspace", StatusWorkspace(workspace=workspace), Workspace)

    async def update_workspace(
        self,
        workspace: str,
        *,
        name: str | None = None,
        clear_name: bool = False,
        labels: Mapping[str, str] | None = None,
        clear_labels: Sequence[str] = (),
    ) -> Workspace:
        """Changes a workspace's name and labels; what is not given stays. Raises Conflict if the name is taken."""
        params = UpdateWorkspace(
            workspace=workspace,
            name=name,
            clear_name=clear_name,
            labels=dict(labels or {}),
            clear_labels=list(clear_labels),
        )
        return await self._call("update_workspace", params, Workspace)

    async def delete_workspace(self, workspace: str) -> Deleted:
        """Ends a workspace's VM and destroys its disk and records. Works in every state."""
        return await self._call("delete_workspace", DeleteWorkspace(workspace=workspace), Deleted)

    async def stop_workspace(self, workspace: str) -> Workspace:
        """Ends all commands, shuts the VM down cleanly and keeps the disk."""
        return await self._call("stop_workspace", StopWorkspace(workspace=workspace), Workspace)

    async def start_workspace(self, workspace: str, *, on_progress: OnProgress | None = None) -> Workspace:
        """Starts a stopped or failed workspace on the disk as it was left. Raises HostMemoryFull."""
        return await self._call(
            "start_workspace", StartWorkspace(workspace=workspace), Workspace, _reporting(on_progress)
        )

    async def reap_expired(self) -> Reaped:
        """Deletes the workspaces whose time is up now, waits until they are gone and returns their ids.

        They are deleted by themselves within moments anyway; this is for who wants to see it done.
        """
        return await self._call("reap_expired", ReapExpired(), Reaped)

    # --- commands ----------------------------------------------------------------------------------------------------

    async def exec_workspace(
        self,
        workspace: str,
        command: str | Sequence[str],
        *,
        cwd: str = WORKSPACE_PATH,
        env: Mapping[str, str] | None = None,
        user: str = "root",
        stdin: Stdin = None,
        timeout_seconds: float | None = None,
        detach: bool = False,
        idempotency_key: str | None = None,
        on_event: OnEvent | None = None,
    ) -> ExecResult:
        """Runs a command and waits for its end.

        Args:
            workspace: id or name.
            command: a list is run as it is, a string by ``/bin/sh -c``.
            cwd: working directory in the guest.
            env: added to the default environment.
            user: name or ``uid[:gid]`` in the guest.
            stdin: standard input; empty by default.
            timeout_seconds: after that the whole tree is killed, and the result has exit_code 124 and timed_out.
            detach: return once the command runs, with the result so far: its exec_id, and no exit_code. It goes on
                without its caller; see :meth:`wait_exec` and :meth:`attach_exec`. It has no stdin.
            idempotency_key: up to 128 characters. Whoever gives the same key again, at once or after a restart of the
                daemon, gets this command's events from the start and its result; it is not run twice. If the caller
                is lost, not cancelled, the command goes on for the next one, once all of its stdin has been sent.
            on_event: called with the command's events as they happen.

        Returns:
            The result; stdout and stderr are bounded, head and tail kept (see :meth:`stream_exec` for all of it).

        Raises:
            InvalidArgument: a NUL byte, a missing cwd, an unknown user, an argument list too long.
            Conflict: the key belongs to another command.
            WorkspaceNotFound, WrongState, WorkspaceFailed.
            LinkLost: the daemon went away. With a key and without stdin that does not happen: the client connects
                again and goes on.
        """
        params = _exec_params(
            workspace, command, cwd, env, user, stdin, timeout_seconds, detach=detach, idempotency_key=idempotency_key
        )
        async with byte_source(stdin) as source:
            return await self._call("exec_workspace", params, ExecResult, Call(_pushing(on_event), source))

    def stream_exec(
        self,
        workspace: str,
        command: str | Sequence[str],
        *,
        cwd: str = WORKSPACE_PATH,
        env: Mapping[str, str] | None = None,
        user: str = "root",
        stdin: Stdin = None,
        timeout_seconds: float | None = None,
        detach: bool = False,
        idempotency_key: str | None = None,
    ) -> ExecStream:
        """Runs a command and yields its events: ExecStarted, ExecOutput as bytes arrive, at last ExecResult.

        Use it as ``async with client.stream_exec(…) as events: async for event in events: …``; leaving the block kills
        a command that still runs. Plain ``async for`` works as well. A slow reader slows the command down, nothing is
        lost. Takes the arguments of :meth:`exec_workspace`.
        """
        params = _exec_params(
            workspace, command, cwd, env, user, stdin, timeout_seconds, detach=detach, idempotency_key=idempotency_key
        )

        async def run(call: Call) -> ExecResult:
            async with byte_source(stdin) as call.input:
                return await self._call("exec_workspace", params, ExecResult, call)

        return ExecStream(run, self._owner())

    async def wait_exec(self, workspace: str, exec_id: str, *, wait_seconds: float | None = None) -> ExecResult:
        """Waits for a command's end and returns its result.

        Args:
            workspace: id or name.
            exec_id: the command's.
            wait_seconds: how long to wait at most; then the result so far, without an exit_code, is returned, and
                the command goes on. 0 asks without waiting.

        Raises:
            ExecNotFound, WorkspaceNotFound, WorkspaceFailed.
        """
        params = WaitExec(workspace=workspace, exec_id=exec_id, wait_seconds=wait_seconds)
        return await self._call("wait_exec", params, ExecResult)

    def attach_exec(self, workspace: str, exec_id: str, *, cursor: int = 0) -> ExecStream:
        """Yields a command's events from ``cursor`` on, as they happen: ExecStarted, ExecOutput, at last ExecResult.

        Leaving it does not touch the command. Every ExecOutput says where it ends: given as ``cursor`` to another call,
        that goes on there, without loss or repetition. Where output is no longer kept an OutputDropped says so. While
        someone is attached nothing is dropped that they have yet to read; the command then waits for them.
        """
        params = AttachExec(workspace=workspace, exec_id=exec_id, cursor=cursor)

        async def run(call: Call) -> ExecResult:
            return await self._call("attach_exec", params, ExecResult, call)

        return ExecStream(run, self._owner())

    async def read_exec(self, workspace: str, exec_id: str, *, cursor: int = 0, max_bytes: int = 16 * 1024) -> ExecPage:
        """Returns a page of a command's output as text, without waiting; ``next_cursor`` leads to the next page.

        Args:
            workspace: id or name.
            exec_id: the command's.
            cursor: where to begin.
            max_bytes: bytes of output in a page, 4 to 1 MiB.
        """
        params = ReadExec(workspace=workspace, exec_id=exec_id, cursor=cursor, max_bytes=max_bytes)
        return await self._call("read_exec", params, ExecPage)

    async def cancel_exec(self, workspace: str, exec_id: str) -> ExecResult:
        """Kills a running command with all its children and returns its result; one that has ended is left alone."""
        return await self._call("cancel_exec", CancelExec(workspace=workspace, exec_id=exec_id), ExecResult)

    async def logs_workspace(self, workspace: str, *, limit: int = 20) -> WorkspaceLogs:
        """Returns the newest commands of a workspace with their output, oldest first."""
        return await self._call("logs_workspace", LogsWorkspace(workspace=workspace, limit=limit), WorkspaceLogs)

    def follow_logs(self, workspace: str, *, limit: int = 20, cursor: str | None = None) -> OperationStream[LogEvent]:
        """Yields the starts, output and ends of all commands of a workspace, as they happen, until it is deleted.

        Args:
            workspace: id or name.
            limit: begin with at most this many commands, the newest.
            cursor: go on behind the event that carried this cursor instead.
        """
        params = FollowLogs(workspace=workspace, limit=limit, cursor=cursor)

        async def deliver(send: Callable[[LogEvent], Awaitable[None]]) -> None:
            async def emit(event: CallEvent) -> None:
                if isinstance(event, LogEvent):
                    await send(event)

            await self._call("follow_logs", params, LogsFollowed, Call(emit))

        return OperationStream(deliver, self._owner())

    async def run_in_vm(
        self,
        environment: str,
        command: str | Sequence[str],
        *,
        vcpu_count: int = 1,
        mem_mib: int = 512,
        env: Mapping[str, str] | None = None,
        stdin: Stdin = None,
        timeout_seconds: float | None = None,
        on_event: OnEvent | None = None,
    ) -> ExecResult:
        """Runs one command in a new workspace and deletes the workspace, whatever happens."""
        params = RunInVm(
            environment=environment,
            command=_command(command),
            vcpu_count=vcpu_count,
            mem_mib=mem_mib,
            env=dict(env or {}),
            stdin=stdin is not None,
            timeout_seconds=timeout_seconds,
        )
        async with byte_source(stdin) as source:
            return await self._call("run_in_vm", params, ExecResult, Call(_pushing(on_event), source))

    # --- environments ------------------------------------------------------------------------------------------------

    async def list_environments(self) -> EnvironmentList:
        """Lists environments that are built or can be built by name."""
        return await self._call("list_environments", ListEnvironments(), EnvironmentList)

    async def build_environment(
        self, environment: str, *, force: bool = False, on_progress: OnProgress | None = None
    ) -> Environment:
        """Builds an environment unless it is there already, or anew with ``force``."""
        params = BuildEnvironment(environment=environment, force=force)
        return await self._call("build_environment", params, Environment, _reporting(on_progress))

    async def inspect_environment(self, environment: str) -> Environment:
        """Describes one environment. Raises EnvironmentNotFound."""
        return await self._call("inspect_environment", InspectEnvironment(environment=environment), Environment)

    async def prune_environments(self, *, all: bool = False) -> Pruned:  # noqa: A002 - the flag's public name
        """Removes images that nothing refers to; with ``all`` also those that only a name refers to."""
        return await self._call("prune_environments", PruneEnvironments(all=all), Pruned)

    # --- events ------------------------------------------------------------------------------------------------------

    async def list_events(
        self, *, after: int = 0, limit: int | None = None, follow: bool = False, on_event: OnEvent | None = None
    ) -> EventList:
        """Tells what has happened to workspaces and commands, oldest first.

        Args:
            after: cursor: the event_id of the last event that is known already; 0 for all that are kept.
            limit: end after this many; by default after 1000, and with ``follow`` never.
            follow: call ``on_event`` with each event, also with those still to come (see :meth:`follow_events`).
            on_event: called with each event if ``follow`` is set.

        Raises:
            InvalidArgument: the cursor lies behind the last event, so it comes from another home.
        """
        params = ListEvents(after=after, limit=limit, follow=follow)
        return await self._call("list_events", params, EventList, Call(_pushing(on_event)))

    def follow_events(self, *, after: int = 0, limit: int | None = None) -> OperationStream[Event]:
        """Yields what has happened behind a cursor and then what happens, as it does; ends after ``limit`` or never.

        Use it as ``async with client.follow_events() as events: async for event in events: …``. A slow reader delays
        nobody. To go on later, also over a restart of the daemon, pass the last ``event_id`` as ``after``.
        """
        params = ListEvents(after=after, limit=limit, follow=True)

        async def deliver(send: Callable[[Event], Awaitable[None]]) -> None:
            async def emit(event: CallEvent) -> None:
                if isinstance(event, Event):
                    await send(event)

            await self._call("list_events", params, EventList, Call(emit))

        return OperationStream(deliver, self._owner())


def _command(command: str | Sequence[str]) -> str | list[str]:
    return command if isinstance(command, str) else list(command)


def _exec_params(
    workspace: str,
    command: str | Sequence[str],
    cwd: str,
    env: Mapping[str, str] | None,
    user: str,
    stdin: Stdin,
    timeout_seconds: float | None,
    *,
    detach: bool,
    idempotency_key: str | None,
) -> ExecWorkspace:
    return ExecWorkspace(
        workspace=workspace,
        command=_command(command),
        cwd=cwd,
        env=dict(env or {}),
        user=user,
        stdin=stdin is not None,
        timeout_seconds=timeout_seconds,
        detach=detach,
        idempotency_key=idempotency_key,
    )


def _pushing(on_event: OnEvent | None) -> Emit:
    async def emit(event: CallEvent) -> None:
        if on_event is not None and (delivery := on_event(event)) is not None:
            await delivery

    return emit


def _reporting(on_progress: OnProgress | None) -> Call:
    def report(event: CallEvent) -> None:
        if on_progress is not None and isinstance(event, Progress):
            on_progress(event)

    return Call(_pushing(report))
