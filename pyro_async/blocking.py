"""Pyro: the sync client. Generated from AsyncPyro by docs/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_async.client import OnEvent, OnProgress
from pyro_async.operations import (
    WORKSPACE_PATH,
    Deleted,
    Environment,
    EnvironmentList,
    Event,
    EventList,
    ExecEvent,
    ExecPage,
    ExecResult,
    LogEvent,
    Pruned,
    Reaped,
    Workspace,
    WorkspaceList,
    WorkspaceLogs,
)
from pyro_async.portal import BlockingClient, BlockingStream

__all__ = ["Pyro"]


class Pyro(BlockingClient):
    """The sync client: ``with Pyro() as client``. Every method blocks; otherwise see AsyncPyro."""

    def create_workspace(
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
        return self._run(
            lambda client: client.create_workspace(
                environment,
                name=name,
                labels=labels,
                vcpu_count=vcpu_count,
                mem_mib=mem_mib,
                ttl_seconds=ttl_seconds,
                idle_stop_seconds=idle_stop_seconds,
                on_progress=on_progress,
            )
        )

    def list_workspaces(self) -> WorkspaceList:
        """Lists all workspaces, oldest first."""
        return self._run(lambda client: client.list_workspaces())

    def status_workspace(self, workspace: str) -> Workspace:
        """Describes a workspace, given by id or name, and what it uses if it runs. Raises WorkspaceNotFound.

        A guest that does not answer delays this by two seconds at most; ``resources.guest`` is None then.
        """
        return self._run(lambda client: client.status_workspace(workspace))

    def update_workspace(
        self,
        workspace: str,
        *,
        name: str | None = None,
        clear_name: bool = False,
        labels: Mapping[str, str] | None = None,
        clear_labels: Sequence[str] = (),
    ) -> Workspace:
        """Changes a workspace's name and labels; what is not given stays. Raises Conflict if the name is taken."""
        return self._run(
            lambda client: client.update_workspace(
                workspace, name=name, clear_name=clear_name, labels=labels, clear_labels=clear_labels
            )
        )

    def delete_workspace(self, workspace: str) -> Deleted:
        """Ends a workspace's VM and destroys its disk and records. Works in every state."""
        return self._run(lambda client: client.delete_workspace(workspace))

    def stop_workspace(self, workspace: str) -> Workspace:
        """Ends all commands, shuts the VM down cleanly and keeps the disk."""
        return self._run(lambda client: client.stop_workspace(workspace))

    def start_workspace(self, workspace: str, *, on_progress: OnProgress | None = None) -> Workspace:
        """Starts a stopped or failed workspace on the disk as it was left. Raises HostMemoryFull."""
        return self._run(lambda client: client.start_workspace(workspace, on_progress=on_progress))

    def reap_expired(self) -> Reaped:
        """Deletes the workspaces whose time is up now, waits until they are gone and returns their ids.

        They are deleted by themselves within moments anyway; this is for who wants to see it done.
        """
        return self._run(lambda client: client.reap_expired())

    def exec_workspace(
        self,
        workspace: str,
        command: str | Sequence[str],
        *,
        cwd: str = WORKSPACE_PATH,
        env: Mapping[str, str] | None = None,
        user: str = "root",
        stdin: bytes | str | None = None,
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
        return self._run(
            lambda client: client.exec_workspace(
                workspace,
                command,
                cwd=cwd,
                env=env,
                user=user,
                stdin=stdin,
                timeout_seconds=timeout_seconds,
                detach=detach,
                idempotency_key=idempotency_key,
                on_event=on_event,
            )
        )

    def stream_exec(
        self,
        workspace: str,
        command: str | Sequence[str],
        *,
        cwd: str = WORKSPACE_PATH,
        env: Mapping[str, str] | None = None,
        user: str = "root",
        stdin: bytes | str | None = None,
        timeout_seconds: float | None = None,
        detach: bool = False,
        idempotency_key: str | None = None,
    ) -> BlockingStream[ExecEvent]:
        """Runs a command and yields its events: ExecStarted, ExecOutput as bytes arrive, at last ExecResult.

        Use it as ``with client.stream_exec(…) as events: for event in events: …``; leaving the block kills
        a command that still runs. Plain ``for`` works as well. A slow reader slows the command down, nothing is
        lost. Takes the arguments of :meth:`exec_workspace`.
        """
        return self._stream(
            lambda client: client.stream_exec(
                workspace,
                command,
                cwd=cwd,
                env=env,
                user=user,
                stdin=stdin,
                timeout_seconds=timeout_seconds,
                detach=detach,
                idempotency_key=idempotency_key,
            )
        )

    def wait_exec(self, workspace: str, exec_id: str, *, wait_seconds: float | None = None) -> ExecResult:
        """Waits for a command's end and returns its result.

        Args:
            workspace: id or name.
            exec_id: the command's.
            wait_seconds: how long to wait at most; then the result so far, without an exit_code, is returned, and
                the command goes on. 0 asks without waiting.

        Raises:
            ExecNotFound, WorkspaceNotFound, WorkspaceFailed.
        """
        return self._run(lambda client: client.wait_exec(workspace, exec_id, wait_seconds=wait_seconds))

    def attach_exec(self, workspace: str, exec_id: str, *, cursor: int = 0) -> BlockingStream[ExecEvent]:
        """Yields a command's events from ``cursor`` on, as they happen: ExecStarted, ExecOutput, at last ExecResult.

        Leaving it does not touch the command. Every ExecOutput says where it ends: given as ``cursor`` to another call,
        that goes on there, without loss or repetition. Where output is no longer kept an OutputDropped says so. While
        someone is attached nothing is dropped that they have yet to read; the command then waits for them.
        """
        return self._stream(lambda client: client.attach_exec(workspace, exec_id, cursor=cursor))

    def read_exec(self, workspace: str, exec_id: str, *, cursor: int = 0, max_bytes: int = 16 * 1024) -> ExecPage:
        """Returns a page of a command's output as text, without waiting; ``next_cursor`` leads to the next page.

        Args:
            workspace: id or name.
            exec_id: the command's.
            cursor: where to begin.
            max_bytes: bytes of output in a page, 4 to 1 MiB.
        """
        return self._run(lambda client: client.read_exec(workspace, exec_id, cursor=cursor, max_bytes=max_bytes))

    def cancel_exec(self, workspace: str, exec_id: str) -> ExecResult:
        """Kills a running command with all its children and returns its result; one that has ended is left alone."""
        return self._run(lambda client: client.cancel_exec(workspace, exec_id))

    def logs_workspace(self, workspace: str, *, limit: int = 20) -> WorkspaceLogs:
        """Returns the newest commands of a workspace with their output, oldest first."""
        return self._run(lambda client: client.logs_workspace(workspace, limit=limit))

    def follow_logs(self, workspace: str, *, limit: int = 20, cursor: str | None = None) -> BlockingStream[LogEvent]:
        """Yields the starts, output and ends of all commands of a workspace, as they happen, until it is deleted.

        Args:
            workspace: id or name.
            limit: begin with at most this many commands, the newest.
            cursor: go on behind the event that carried this cursor instead.
        """
        return self._stream(lambda client: client.follow_logs(workspace, limit=limit, cursor=cursor))

    def run_in_vm(
        self,
        environment: str,
        command: str | Sequence[str],
        *,
        vcpu_count: int = 1,
        mem_mib: int = 512,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        timeout_seconds: float | None = None,
        on_event: OnEvent | None = None,
    ) -> ExecResult:
        """Runs one command in a new workspace and deletes the workspace, whatever happens."""
        return self._run(
            lambda client: client.run_in_vm(
                environment,
                command,
                vcpu_count=vcpu_count,
                mem_mib=mem_mib,
                env=env,
                stdin=stdin,
                timeout_seconds=timeout_seconds,
                on_event=on_event,
            )
        )

    def list_environments(self) -> EnvironmentList:
        """Lists environments that are built or can be built by name."""
        return self._run(lambda client: client.list_environments())

    def build_environment(
        self, environment: str, *, force: bool = False, on_progress: OnProgress | None = None
    ) -> Environment:
        """Builds an environment unless it is there already, or anew with ``force``."""
        return self._run(lambda client: client.build_environment(environment, force=force, on_progress=on_progress))

    def inspect_environment(self, environment: str) -> Environment:
        """Describes one environment. Raises EnvironmentNotFound."""
        return self._run(lambda client: client.inspect_environment(environment))

    def prune_environments(self, *, all: bool = False) -> Pruned:  # noqa: A002 - the flag's public name
        """Removes images that nothing refers to; with ``all`` also those that only a name refers to."""
        return self._run(lambda client: client.prune_environments(all=all))

    def list_events(
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
        return self._run(lambda client: client.list_events(after=after, limit=limit, follow=follow, on_event=on_event))

    def follow_events(self, *, after: int = 0, limit: int | None = None) -> BlockingStream[Event]:
        """Yields what has happened behind a cursor and then what happens, as it does; ends after ``limit`` or never.

        Use it as ``with client.follow_events() as events: for event in events: …``. A slow reader delays
        nobody. To go on later, also over a restart of the daemon, pass the last ``event_id`` as ``after``.
        """
        return self._stream(lambda client: client.follow_events(after=after, limit=limit))
