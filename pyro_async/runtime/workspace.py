"""One workspace: the task group that owns its machine, its link and its commands.

Only this module joins a driver's byte stream to a connection.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from pyro_async import __version__
from pyro_async.errors import (
    ExecNotFound,
    GuestUnresponsive,
    InternalError,
    InvalidArgument,
    LinkLost,
    PyroError,
    WorkspaceFailed,
    WorkspaceNotFound,
    WrongState,
)
from pyro_async.groups import plain_task_group
from pyro_async.operations import INLINE_OUTPUT_LIMIT, WORKSPACE_PATH, CommandSummary, ExecResult, ExecWorkspace
from pyro_async.operations import Workspace as WorkspaceResult
from pyro_async.runtime.execution import Execution, exec_result
from pyro_async.runtime.lifecycle import Phase, check_transition, public_state
from pyro_async.runtime.link import Link
from pyro_async.runtime.output import OutputStore
from pyro_async.runtime.store import ExecRecord, Store, WorkspaceRecord
from pyro_async.vmm.driver import Driver, Machine, MachineExit
from pyro_async.wire.codec import Hello
from pyro_async.wire.connection import Connection
from pyro_async.wire.guest import Configure, Configured, Exec, Forget, Running, RunningExec, Shutdown

__all__ = ["Workspace"]

#: Until the agent of a freshly booted guest must have answered; emulated guests on a busy host are slow.
BOOT_SECONDS: Final = 90.0
#: Until a configured guest must have its root.
CONFIGURE_SECONDS: Final = 60.0
#: How long commands get between TERM and KILL when a workspace stops.
STOP_GRACE: Final = 2.0
#: How long the agent may take over its part of a shutdown, beyond that grace.
SHUTDOWN_SECONDS: Final = 15.0
#: How long ended commands are gathered before the agent is told that their ends are recorded.
_FORGET_DELAY: Final = 0.25
#: Bytes of the guest's console that go into an error.
_CONSOLE_EXCERPT: Final = 2048
#: How long the guest may then take to power off before the VMM is asked, and then forced, to quit.
POWER_OFF_GRACE: Final = 5.0


class _Ending(Enum):
    """What becomes of the machine when a workspace's task ends."""

    SHUT_DOWN = auto()
    RELEASE = auto()
    KILL = auto()


class Workspace:
    """A workspace, running or not.

    Args:
        record: what is stored of it.
        directory: holds everything it owns on disk.
        driver: starts its machine.
        store: where transitions are recorded.
    """

    def __init__(self, record: WorkspaceRecord, directory: Path, driver: Driver, store: Store) -> None:
        self.record = record
        self.directory = directory
        self.driver = driver
        self._store = store
        self._output = OutputStore(directory / "output")
        self._executions: dict[str, Execution] = {}
        self._tasks: TaskGroup | None = None
        self._link: Link | None = None
        self._stop = anyio.Event()
        self._ending = _Ending.KILL
        self._forgettable: list[str] = []
        self._ended = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()
        self._last_exec: ExecRecord | None = next(iter(store.newest_execs(record.workspace_id, 1)), None)
        #: Held by whoever takes the workspace from one state to another.
        self.transition = anyio.Lock()

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.record.name or self.record.workspace_id

    def describe(self) -> WorkspaceResult:
        """Its public description."""
        record, last = self.record, self._last_exec
        return WorkspaceResult(
            workspace_id=record.workspace_id,
            name=record.name,
            labels=record.labels,
            environment=record.environment,
            state=public_state(record.phase),
            failure=record.failure,
            driver=record.driver,
            vcpu_count=record.vcpu_count,
            mem_mib=record.mem_mib,
            created_at=record.created_at,
            last_activity_at=record.last_activity_at,
            command_count=last.sequence if last else 0,
            last_command=CommandSummary(
                exec_id=last.exec_id,
                command=last.command,
                exit_code=last.exit.exit_code if last.exit else None,
                started_at=last.started_at,
            )
            if last
            else None,
        )

    def enter(self, phase: Phase) -> None:
        """Records a transition, before anything is done about it.

        Raises:
            WrongState: it is not a legal one.
        """
        check_transition(self.label, self.record.phase, phase)
        self.record.phase = phase
        self._store.save_workspace(self.record)

    # --- the machine's life ------------------------------------------------------------------------------------------

    async def run(self, *, adopt: bool = False, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Runs the workspace's machine until it is stopped, released or fails; started when the guest is ready.

        After it has started this raises nothing: how it ended is in the record.

        Args:
            adopt: take over the machine an earlier process started.

        Raises:
            PyroError: before it is started; the machine is gone then.
        """
        self._stop, self._idle, self._ending = anyio.Event(), anyio.Event(), _Ending.KILL
        try:
            await self._run_machine(adopt=adopt, task_status=task_status)
        except Exception as error:  # whatever it is, it ends this workspace only
            failure = error if isinstance(error, PyroError) else InternalError(f"{type(error).__name__}: {error}")
            if self.record.phase in (Phase.CREATING, Phase.STARTING):
                raise failure from error
            self._failed(failure)
        finally:
            self._tasks = self._link = None
            self._idle.set()

    async def _run_machine(self, *, adopt: bool, task_status: TaskStatus[None]) -> None:
        spec = self.record.spec
        assert spec is not None
        if adopt and self.record.machine is not None:
            context = self.driver.adopt(spec, self.record.machine)
        else:
            context = self.driver.start(spec)
        async with context as machine:
            self.record.machine = machine.identity
            self.record.driver = f"{self.driver.name}/{machine.acceleration}"
            self._store.save_workspace(self.record)
            try:
                async with plain_task_group() as tasks:
                    tasks.start_soon(self._watch, machine, name="machine")
                    await self._bring_up(machine, tasks, adopt=adopt)
                    if self.record.phase is not Phase.STARTED:
                        self.enter(Phase.STARTED)
                    self._tasks = tasks
                    task_status.started()
                    await self._stop.wait()
                    self._tasks = None
                    if self._ending is _Ending.RELEASE:
                        machine.leave_running()
                    elif self._ending is _Ending.SHUT_DOWN:
                        await self._shut_down(machine)
                    else:
                        self._lose_executions(WorkspaceNotFound(f"workspace {self.label} was deleted"))
                    tasks.cancel_scope.cancel()
            except PyroError as error:
                self._lose_executions(error)
                if isinstance(error, GuestUnresponsive):
                    raise GuestUnresponsive(f"{error.message}{_console(machine)}", hint=error.hint) from error
                raise
        if self._ending is not _Ending.RELEASE:
            self.record.machine = None

    async def _bring_up(self, machine: Machine, tasks: TaskGroup, *, adopt: bool) -> None:
        """Connects to the agent and gives the guest its identity; an adopted one keeps what it has."""
        hello = Hello(software=__version__)
        link = Link(machine, hello, self.record.nonce if adopt else b"")
        connection: Connection = await tasks.start(link.run, BOOT_SECONDS, name="link")
        self.record.nonce = link.nonce
        self._link = link
        configure = Configure(
            hostname=_hostname(self.record),
            machine_id=os.urandom(16).hex(),
            clock_ns=time.time_ns(),
            entropy=os.urandom(64),
            workspace_path=WORKSPACE_PATH,
        )
        with anyio.move_on_after(CONFIGURE_SECONDS):
            await connection.call(Configure.method, configure, Configured)
            if adopt:
                await self._resume(connection, tasks, link)
            tasks.start_soon(self._forget, link, name="forget")
            return
        raise GuestUnresponsive("the guest's agent took too long to set up the guest")

    async def _watch(self, machine: Machine) -> None:
        """Turns an exit that nobody asked for into a failure, or into a stop if the guest powered itself off."""
        ended = await machine.wait()
        if self._stop.is_set():
            return
        raise _exit_error(self.label, ended, machine)

    async def _shut_down(self, machine: Machine) -> None:
        """Agent first, then the VMM's own request, then force; each bounded and shielded."""
        with anyio.CancelScope(shield=True):
            assert self._link is not None
            with anyio.move_on_after(STOP_GRACE + SHUTDOWN_SECONDS):
                connection = await self._link.connection()
                try:
                    await connection.call(Shutdown.method, Shutdown(grace_seconds=STOP_GRACE), object)
                except PyroError:
                    pass  # the power went before the answer did
            await machine.power_off(POWER_OFF_GRACE)
        self._lose_executions(WrongState(f"workspace {self.label} was stopped"))

    def _failed(self, error: PyroError) -> None:
        """Records how a running workspace ended on its own."""
        if self.record.phase is Phase.DELETING:
            return
        if isinstance(error, _PoweredOff):
            self.enter(Phase.STOPPED)
        else:
            self.record.failure = str(error)
            self.enter(Phase.FAILED)

    def _lose_executions(self, error: PyroError) -> None:
        for execution in list(self._executions.values()):
            execution.fail(error)

    async def stop(self) -> None:
        """Shuts the machine down in good order and waits for that. Does nothing to one that does not run."""
        await self._end(_Ending.SHUT_DOWN)

    async def release(self) -> None:
        """Ends all tasks but leaves the machine running for a later process to adopt."""
        await self._end(_Ending.RELEASE)

    async def kill(self) -> None:
        """Ends the machine at once."""
        await self._end(_Ending.KILL)

    async def _end(self, how: _Ending) -> None:
        self._ending = how
        self._stop.set()
        await self._idle.wait()

    def give_up(self, error: PyroError) -> None:
        """Records that a machine which should be running could not be taken over."""
        self.record.machine = None
        self._failed(error)
        for record in self._store.running_execs(self.record.workspace_id):
            record.lost = True
            self._store.save_exec(record)

    # --- commands ----------------------------------------------------------------------------------------------------

    def start_exec(self, params: ExecWorkspace) -> Execution:
        """Starts a command; does not wait for anything.

        Raises:
            WrongState, WorkspaceFailed: the workspace is not running.
            InvalidArgument: a string cannot be passed to a program.
        """
        tasks, link = self._running()
        argv = ["/bin/sh", "-c", params.command] if isinstance(params.command, str) else params.command
        _refuse_nul(argv, params.cwd, params.env)
        record = ExecRecord(
            workspace_id=self.record.workspace_id,
            exec_id=os.urandom(6).hex(),
            sequence=(self._last_exec.sequence if self._last_exec else 0) + 1,
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
        self._store.save_exec(record)
        self._last_exec = record
        self.record.last_activity_at = record.started_at
        execution = Execution(record, self._output.journal(record.exec_id), call)
        self._follow(execution, tasks, link)
        return execution

    def execution(self, exec_id: str) -> Execution | None:
        """A command that still runs, or None."""
        return self._executions.get(exec_id)

    def result(self, exec_id: str, limit: int = INLINE_OUTPUT_LIMIT) -> ExecResult:
        """The result so far of a command that runs or has ended.

        Raises:
            ExecNotFound: there is no such command.
        """
        execution = self._executions.get(exec_id)
        record = execution.record if execution else self._store.exec(self.record.workspace_id, exec_id)
        if record is None:
            raise ExecNotFound(f"workspace {self.label} has no command {exec_id}", hint="see `pyro workspace logs`")
        return exec_result(record, execution.journal if execution else self._output.journal(exec_id), limit)

    def history(self, count: int, limit: int) -> list[ExecResult]:
        """The newest ``count`` commands, oldest first, with at most ``limit`` bytes of each output."""
        records = self._store.newest_execs(self.record.workspace_id, count)
        return [self.result(record.exec_id, limit) for record in records]

    def _running(self) -> tuple[TaskGroup, Link]:
        if self._tasks is not None and self._link is not None:
            return self._tasks, self._link
        if self.record.phase is Phase.FAILED:
            raise WorkspaceFailed(
                f"workspace {self.label} has failed: {self.record.failure}",
                hint="start it again, or delete it",
            )
        check_transition(self.label, self.record.phase, Phase.STOPPING)
        raise WrongState(f"workspace {self.label} is ending", hint="wait until that is done")

    def _follow(self, execution: Execution, tasks: TaskGroup, link: Link) -> None:
        exec_id = execution.record.exec_id
        self._executions[exec_id] = execution
        tasks.start_soon(execution.run, link, self._exec_ended, name=f"exec {exec_id}")

    def _exec_ended(self, execution: Execution) -> None:
        record = execution.record
        self._executions.pop(record.exec_id, None)
        self.record.last_activity_at = time.time()
        if not isinstance(execution.error, InvalidArgument):
            self._store.save_exec(record)
            self._forgettable.append(record.exec_id)
            self._ended.set()
            return
        # The guest refused to run it: that is the caller's error, not part of the workspace's history.
        self._store.delete_exec(record)
        if self._last_exec is record:
            self._last_exec = next(iter(self._store.newest_execs(record.workspace_id, 1)), None)

    async def _resume(self, connection: Connection, tasks: TaskGroup, link: Link) -> None:
        """Takes up the commands an earlier process left: those the agent still holds are followed, others are lost."""
        held = {entry.exec_id for entry in await connection.call(Running.method, Running(), list[RunningExec])}
        for record in self._store.running_execs(self.record.workspace_id):
            if record.exec_id in held:
                self._follow(Execution(record, self._output.journal(record.exec_id), None), tasks, link)
            else:
                record.lost = True
                self._store.save_exec(record)

    async def _forget(self, link: Link) -> None:
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


class _PoweredOff(PyroError):
    """The guest powered itself off in good order."""


def _exit_error(label: str, ended: MachineExit, machine: Machine) -> PyroError:
    if ended.clean:
        return _PoweredOff(f"workspace {label} powered itself off", hint="start it again")
    return WorkspaceFailed(f"the VM of workspace {label} is gone: {ended.reason}{_console(machine)}")


def _console(machine: Machine) -> str:
    tail = machine.console_tail(_CONSOLE_EXCERPT).strip()
    return f"\n--- end of the guest's console ---\n{tail}" if tail else ""


def _hostname(record: WorkspaceRecord) -> str:
    """A valid host name: the workspace's name where it is one, else its id."""
    name = (record.name or "").lower().replace("_", "-").replace(".", "-").strip("-")
    return name or f"ws-{record.workspace_id}"


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
