"""One workspace: the task group that owns its machine, its link and its commands.

Only this module joins a driver's byte stream to a connection.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from pathlib import Path
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from pyro_async import __version__
from pyro_async.errors import (
    GuestUnresponsive,
    InternalError,
    ProtocolError,
    PyroError,
    WorkspaceFailed,
    WorkspaceNotFound,
    WrongState,
)
from pyro_async.faults import fault_point
from pyro_async.groups import plain_task_group
from pyro_async.operations import WORKSPACE_PATH, ExecWorkspace
from pyro_async.operations import Workspace as WorkspaceResult
from pyro_async.runtime.activity import Activity
from pyro_async.runtime.clock import Clock
from pyro_async.runtime.commands import Commands
from pyro_async.runtime.events import Happened
from pyro_async.runtime.execution import Execution
from pyro_async.runtime.lifecycle import Phase, check_transition, event_kind, public_state
from pyro_async.runtime.link import Link
from pyro_async.runtime.log import event
from pyro_async.runtime.store import Store, WorkspaceRecord
from pyro_async.vmm.driver import Driver, Machine, MachineExit
from pyro_async.wire.codec import Hello
from pyro_async.wire.connection import Connection
from pyro_async.wire.guest import Configure, Configured, Shutdown, Stats, StatsResult

__all__ = ["Workspace"]

#: Until the agent of a freshly booted guest must have answered; emulated guests on a busy host are slow.
BOOT_SECONDS: Final = 90.0
#: Until the agent of a guest that was running all along must have answered.
ADOPT_SECONDS: Final = 20.0
#: Until a configured guest must have its root.
CONFIGURE_SECONDS: Final = 60.0
#: How long a guest may take to set its clock.
CLOCK_SECONDS: Final = 30.0
#: How long commands get between TERM and KILL when a workspace stops.
STOP_GRACE: Final = 2.0
#: How long the agent may take over its part of a shutdown, beyond that grace.
SHUTDOWN_SECONDS: Final = 15.0
#: How long the guest may then take to power off before the VMM is asked, and then forced, to quit.
POWER_OFF_GRACE: Final = 5.0
#: How long a guest may take to say what it uses.
STATS_SECONDS: Final = 2.0
#: Bytes of the guest's console that go into an error.
_CONSOLE_EXCERPT: Final = 2048


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
        clock: what its idle time is measured by.

    Attributes:
        activity: what keeps it from being idle.
        commands: what runs and ran in it.
        transition: held by whoever takes it from one state to another.
    """

    def __init__(self, record: WorkspaceRecord, directory: Path, driver: Driver, store: Store, clock: Clock) -> None:
        self.record = record
        self.directory = directory
        self.driver = driver
        self.activity = Activity(clock)
        self.commands = Commands(record.workspace_id, directory / "output", store, self.activity)
        self.transition = anyio.Lock()
        self._store = store
        self._tasks: TaskGroup | None = None
        self._link: Link | None = None
        self._stop = anyio.Event()
        self._ending = _Ending.KILL
        self._idle = anyio.Event()
        self._idle.set()

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.record.name or self.record.workspace_id

    def describe(self) -> WorkspaceResult:
        """Its public description."""
        record = self.record
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
            last_activity_at=max(record.last_activity_at, self.commands.last_activity_at),
            command_count=self.commands.count,
            last_command=self.commands.summary(),
            expires_at=record.expires_at,
            idle_stop_seconds=record.idle_stop_seconds,
        )

    @property
    def started(self) -> bool:
        """Whether it is up."""
        return self.record.phase is Phase.STARTED

    @property
    def has_machine(self) -> bool:
        """Whether its machine takes the host's memory: from the moment it is about to start until it is gone."""
        return not self._idle.is_set()

    async def stats(self) -> StatsResult | None:
        """What the guest says it uses; None if it does not run or does not answer at once."""
        if (link := self._link) is None:
            return None
        with anyio.move_on_after(STATS_SECONDS):
            try:
                connection = await link.connection()
                return await connection.call(Stats.method, Stats(), StatsResult)
            except ProtocolError as error:
                link.fail(error)
            except PyroError:
                pass  # the link is being mended, or the agent is older than this question
        return None

    def enter(self, phase: Phase, *happened: Happened) -> None:
        """Records a transition, before anything is done about it, and with it the events that tell of it.

        Raises:
            WrongState: it is not a legal one.
        """
        check_transition(self.label, self.record.phase, phase)
        self.record.phase = phase
        if kind := event_kind(phase):
            failure = {"failure": self.record.failure.partition("\n")[0]} if self.record.failure else {}
            happened = (self.happened(kind, **failure), *happened)
        self._store.save_workspace(self.record, *happened)

    def happened(self, kind: str, **detail: str | int | None) -> Happened:
        """An event about this workspace."""
        return Happened(kind, self.record.workspace_id, dict(detail))

    def start_exec(self, params: ExecWorkspace) -> Execution:
        """Starts a command; see :meth:`Commands.start`.

        Raises:
            WrongState, WorkspaceFailed: the workspace is not running.
        """
        if self._tasks is not None and self._link is not None:
            return self.commands.start(params, self._tasks, self._link)
        if self.record.phase is Phase.FAILED:
            raise WorkspaceFailed(
                f"workspace {self.label} has failed: {self.record.failure}", hint="start it again, or delete it"
            )
        check_transition(self.label, self.record.phase, Phase.STOPPING)
        raise WrongState(f"workspace {self.label} is ending", hint="wait until that is done")

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
        self.activity.touch()
        started = anyio.Event()
        try:
            await self._run_machine(adopt=adopt, started=started, task_status=task_status)
        except Exception as error:  # whatever it is, it ends this workspace only
            failure = error if isinstance(error, PyroError) else InternalError(f"{type(error).__name__}: {error}")
            self.record.machine = None
            if not started.is_set():
                raise failure from error
            self.fail(failure)
        finally:
            if self._link is not None:
                self._link.end()
            self._tasks = self._link = None
            self._idle.set()

    async def _run_machine(self, *, adopt: bool, started: anyio.Event, task_status: TaskStatus[None]) -> None:
        spec, identity = self.record.spec, self.record.machine
        assert spec is not None
        context = self.driver.adopt(spec, identity) if adopt and identity else self.driver.start(spec)
        async with context as machine:
            fault_point("machine.started")
            self.record.machine = machine.identity
            self.record.driver = f"{self.driver.name}/{machine.acceleration}"
            self._store.save_workspace(self.record)
            fault_point("machine.recorded")
            try:
                async with plain_task_group() as tasks:
                    tasks.start_soon(self._vital, self._watch, machine, name="machine")
                    self._link = await self._bring_up(machine, tasks, adopt=adopt)
                    if not adopt:
                        fault_point("machine.configured")
                        self.enter(Phase.STARTED)
                        fault_point("machine.ready")
                    self._tasks = tasks
                    tasks.cancel_scope.shield = True  # from here on stop, release and kill end it, in good order
                    started.set()
                    task_status.started()
                    await self._stop.wait()
                    self._tasks = None
                    await self._wind_up(machine, self._link)
                    tasks.cancel_scope.cancel()
            except GuestUnresponsive as error:
                raise GuestUnresponsive(f"{error.message}{_console(machine)}", hint=error.hint) from error
        if self._ending is not _Ending.RELEASE:
            self.record.machine = None

    async def _bring_up(self, machine: Machine, tasks: TaskGroup, *, adopt: bool) -> Link:
        """Connects to the agent and gives the guest its identity; an adopted one keeps what it has."""
        link = Link(machine, Hello(software=__version__), self.record.nonce if adopt else b"")
        seconds = ADOPT_SECONDS if adopt else BOOT_SECONDS
        connection: Connection = await tasks.start(self._vital, link.run, seconds, name="link")
        self.record.nonce = link.nonce
        with anyio.move_on_after(CONFIGURE_SECONDS):
            await connection.call(Configure.method, _identity(self.record), Configured)
            if adopt:
                fault_point("recover.greeted")
                await self.commands.resume(connection, tasks, link)
            tasks.start_soon(self.commands.acknowledge, link, name="acknowledge")
            return link
        raise GuestUnresponsive("the guest's agent took too long to set up the guest")

    async def _vital(self, run: Callable[..., Awaitable[None]], *args: object, **options: object) -> None:
        """Runs what no command can go on without: commands learn why it failed before they are cancelled for it."""
        try:
            await run(*args, **options)
        except PyroError as error:
            self._tasks = None  # nothing more is started in a group that is about to be cancelled
            self.commands.fail(error)
            raise

    async def _watch(self, machine: Machine) -> None:
        """Turns an exit that nobody asked for into a failure, or into a stop if the guest powered itself off."""
        ended = await machine.wait()
        if not self._stop.is_set():
            raise _exit_error(self.label, ended, machine)

    async def _wind_up(self, machine: Machine, link: Link) -> None:
        """Ends the machine as asked, and tells the commands what became of them."""
        if self._ending is _Ending.RELEASE:
            machine.leave_running()
        elif self._ending is _Ending.SHUT_DOWN:
            await _shut_down(machine, link)
            self.commands.fail(WrongState(f"workspace {self.label} was stopped"))
        else:  # leaving the machine's context kills it
            self.commands.fail(WorkspaceNotFound(f"workspace {self.label} was deleted"))

    async def set_clock(self) -> None:
        """Gives a running guest the host's time again; one that cannot take it has other troubles, found elsewhere."""
        link = self._link
        if link is None:
            return
        with anyio.move_on_after(CLOCK_SECONDS):
            connection = await link.connection()
            try:
                await connection.call(Configure.method, _identity(self.record), Configured)
            except PyroError:
                pass

    def fail(self, error: PyroError, *happened: Happened) -> None:
        """Records how a running workspace ended on its own."""
        self.commands.lose()
        if isinstance(error, _PoweredOff):
            self.enter(Phase.STOPPED, *happened)
        elif self.record.phase is not Phase.DELETING:
            self.record.failure = str(error)
            self.enter(Phase.FAILED, *happened)
            event(
                "workspace failed",
                logging.ERROR,
                workspace_id=self.record.workspace_id,
                code=error.code,
                reason=error.message.partition("\n")[0],
            )
        fault_point("failure.recorded")

    def give_up(self, error: PyroError, *happened: Happened) -> None:
        """Records that a machine which should be running could not be taken over."""
        self.record.machine = None
        self.fail(error, *happened)

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


async def _shut_down(machine: Machine, link: Link) -> None:
    """Agent first, then the VMM's own request, then force; each bounded, all of it shielded."""
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(STOP_GRACE + SHUTDOWN_SECONDS):
            try:
                connection = await link.connection()
                await connection.call(Shutdown.method, Shutdown(grace_seconds=STOP_GRACE), object)
            except PyroError:
                pass  # the power went before the answer did
        await machine.power_off(POWER_OFF_GRACE)


class _PoweredOff(WorkspaceFailed):
    """The guest powered itself off in good order."""


def _exit_error(label: str, ended: MachineExit, machine: Machine) -> PyroError:
    if ended.clean:
        return _PoweredOff(f"workspace {label} powered itself off", hint="start it again")
    return WorkspaceFailed(f"the VM of workspace {label} is gone: {ended.reason}{_console(machine)}")


def _console(machine: Machine) -> str:
    tail = machine.console_tail(_CONSOLE_EXCERPT).strip()
    return f"\n--- end of the guest's console ---\n{tail}" if tail else ""


def _identity(record: WorkspaceRecord) -> Configure:
    """What makes a guest this workspace's: the same after every start, but for clock and entropy."""
    return Configure(
        hostname=_hostname(record),
        machine_id=hashlib.blake2b(record.workspace_id.encode(), digest_size=16).hexdigest(),
        clock_ns=time.time_ns(),
        entropy=os.urandom(64),
        workspace_path=WORKSPACE_PATH,
    )


def _hostname(record: WorkspaceRecord) -> str:
    """The workspace's name as far as it can be a host name, else its id."""
    name = (record.name or "").lower().replace("_", "-").replace(".", "-")[:63].strip("-")
    return name or f"ws-{record.workspace_id}"
