"""The runtime: one async method per operation, on top of the supervisor and the image store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import anyio
from msgspec import structs

from pyro_async.calls import Call
from pyro_async.errors import InvalidArgument
from pyro_async.faults import fault_point
from pyro_async.groups import plain_task_group
from pyro_async.home import Home
from pyro_async.images.progress import Report
from pyro_async.images.store import EnvironmentImage, GuestImages, ImageStore
from pyro_async.images.workbench import Workbench
from pyro_async.operations import (
    AttachExec,
    BuildEnvironment,
    CancelExec,
    CreateWorkspace,
    Deleted,
    DeleteWorkspace,
    Environment,
    EnvironmentList,
    EventList,
    ExecPage,
    ExecResult,
    ExecWorkspace,
    FollowLogs,
    InspectEnvironment,
    ListEnvironments,
    ListEvents,
    ListWorkspaces,
    LogsFollowed,
    LogsWorkspace,
    Progress,
    Pruned,
    PruneEnvironments,
    ReadExec,
    Reaped,
    ReapExpired,
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
from pyro_async.runtime.admission import Limits
from pyro_async.runtime.clock import Clock, SystemClock
from pyro_async.runtime.clock_watch import ClockJump, watch_clock
from pyro_async.runtime.command_log import LogFollower
from pyro_async.runtime.drivers import Drivers
from pyro_async.runtime.events import Happened, answer
from pyro_async.runtime.lifetime import Lifetime
from pyro_async.runtime.pages import read_page
from pyro_async.runtime.relay import attach, execute, wait
from pyro_async.runtime.resources import resources
from pyro_async.runtime.store import Store
from pyro_async.runtime.supervisor import Parts, Supervisor
from pyro_async.runtime.workspace import Workspace as LiveWorkspace
from pyro_async.vmm.driver import Driver

__all__ = ["Runtime"]

#: Bytes of each output that an entry of `logs` carries.
LOG_EXCERPT: Final = 16 * 1024
#: How long ending all workspaces may take when the runtime itself ends.
CLOSE_SECONDS: Final = 60.0


class Images(Protocol):
    """What the runtime needs of the image store; see :class:`~pyro_async.images.store.ImageStore`."""

    async def ensure_guest(self, report: Report) -> GuestImages: ...

    async def build(self, name: str, report: Report, *, force: bool) -> EnvironmentImage: ...

    async def prune(self, in_use: Set[str], *, all: bool) -> Pruned: ...  # noqa: A002 - the operation's own name

    def upper_template(self) -> Path: ...

    def list(self) -> Sequence[Environment]: ...

    def inspect(self, name: str) -> Environment: ...


class Runtime:
    """Owns everything below one home: ``async with Runtime(home) as runtime``.

    Args:
        home: its directory; locked exclusively while the runtime lives.
        driver: runs the VMs; by default the best one that really runs a guest on this host.
        leave_running: on leaving, let VMs run for the next runtime to adopt, instead of stopping them cleanly.
        clock: what lifetimes and idle times are measured by.
        limits: how many VMs there may be; by default what this host can bear.

    Raises:
        InvalidArgument: the environment sets a limit that is none.
    """

    def __init__(
        self,
        home: Path,
        *,
        driver: Driver | None = None,
        images: Images | None = None,
        leave_running: bool = False,
        clock: Clock | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.home: Final = Home(home)
        self.leave_running = leave_running
        self._images: Images = images or ImageStore(self.home.root)
        self._drivers = Drivers(self.home.root / "probes.json", [driver] if driver else [])
        self._clock = clock or SystemClock()
        self._limits = limits or Limits.of_host()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self.home.owned())
            self._store = Store(self.home.database)
            stack.callback(self._store.close)
            self._tasks = await stack.enter_async_context(plain_task_group())
            self._supervisor = Supervisor(self.home, self._store, self._drivers, self._tasks, self._clock, self._limits)
            self._lifetime = Lifetime(self._supervisor, self._clock)
            stack.push_async_callback(self._close)
            await Workbench(self.home.root).sweep()
            await self._supervisor.recover()
            self._tasks.start_soon(self._lifetime.run, name="clock")
            self._tasks.start_soon(watch_clock, self._clock_jumped, name="clock jumps")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    async def _close(self) -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._supervisor.close(release=self.leave_running)
        self._tasks.cancel_scope.cancel()

    async def release(self) -> None:
        """Lets go of all machines, which run on; whoever follows a command learns that it goes on without them."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._supervisor.close(release=True)

    async def _clock_jumped(self, jump: ClockJump) -> None:
        """Tells every guest the time; they noticed nothing, or stood still themselves."""
        self._store.record(Happened("host.clock_jumped", None, {"cause": jump.cause, "seconds": jump.seconds}))
        fault_point("clock.recorded")
        await self._supervisor.set_clocks()

    # --- workspaces --------------------------------------------------------------------------------------------------

    async def create_workspace(self, params: CreateWorkspace, call: Call) -> Workspace:
        return (await self._create(params, call)).describe()

    async def _create(self, params: CreateWorkspace, call: Call, *, ephemeral: bool = False) -> LiveWorkspace:
        self._supervisor.check_name(params.name)
        async with _reporting(call) as report:
            image = await self._ensure_environment(params.environment, report)
            guest = await self._images.ensure_guest(report)
            driver = await self._drivers.choose(guest.kernel, report)
            parts = Parts(driver=driver, guest=guest, environment=image, upper=self._images.upper_template())
            workspace = await self._supervisor.create(params, parts, report, ephemeral=ephemeral)
        self._lifetime.changed()
        return workspace

    async def _ensure_environment(self, name: str, report: Report, *, force: bool = False) -> EnvironmentImage:
        began = time.time()
        image = await self._images.build(name, report, force=force)
        if image.created_at >= began:
            self._store.record(Happened("environment.built", None, {"environment": name, "digest": image.digest}))
            fault_point("environment.recorded")
        return image

    async def list_workspaces(self, params: ListWorkspaces, call: Call) -> WorkspaceList:
        return WorkspaceList(workspaces=[workspace.describe() for workspace in self._supervisor.workspaces()])

    async def status_workspace(self, params: StatusWorkspace, call: Call) -> Workspace:
        workspace = self._supervisor.find(params.workspace)
        used = await resources(workspace, self._clock)
        return structs.replace(workspace.describe(), resources=used)

    async def update_workspace(self, params: UpdateWorkspace, call: Call) -> Workspace:
        if params.name is not None and params.clear_name:
            raise InvalidArgument("a name is given and cleared at once", hint="do one of both")
        workspace = self._supervisor.find(params.workspace)
        self._supervisor.check_name(params.name, workspace)
        record = workspace.record
        kept = {key: value for key, value in record.labels.items() if key not in params.clear_labels}
        record.labels = kept | params.labels
        record.name = None if params.clear_name else params.name or record.name
        self._store.save_workspace(record, workspace.happened("workspace.updated", name=record.name))
        fault_point("update.recorded")
        return workspace.describe()

    async def delete_workspace(self, params: DeleteWorkspace, call: Call) -> Deleted:
        return await self._supervisor.delete(self._supervisor.find(params.workspace))

    async def stop_workspace(self, params: StopWorkspace, call: Call) -> Workspace:
        workspace = self._supervisor.find(params.workspace)
        await self._supervisor.stop(workspace)
        return workspace.describe()

    async def start_workspace(self, params: StartWorkspace, call: Call) -> Workspace:
        workspace = self._supervisor.find(params.workspace)
        async with _reporting(call) as report:
            await self._supervisor.start(workspace, report)
        return workspace.describe()

    async def reap_expired(self, params: ReapExpired, call: Call) -> Reaped:
        return Reaped(workspace_ids=await self._lifetime.reap())

    # --- commands ----------------------------------------------------------------------------------------------------

    async def exec_workspace(self, params: ExecWorkspace, call: Call) -> ExecResult:
        return await execute(self._supervisor.find(params.workspace), params, call)

    async def wait_exec(self, params: WaitExec, call: Call) -> ExecResult:
        return await wait(self._supervisor.find(params.workspace), params)

    async def attach_exec(self, params: AttachExec, call: Call) -> ExecResult:
        return await attach(self._supervisor.find(params.workspace), params, call)

    async def read_exec(self, params: ReadExec, call: Call) -> ExecPage:
        commands = self._supervisor.find(params.workspace).commands
        return read_page(commands.record(params.exec_id), commands.journal(params.exec_id), params)

    async def cancel_exec(self, params: CancelExec, call: Call) -> ExecResult:
        workspace = self._supervisor.find(params.workspace)
        execution = workspace.commands.running(params.exec_id)
        if execution is not None:
            await execution.cancel_and_wait()
        return workspace.commands.result(params.exec_id)

    async def logs_workspace(self, params: LogsWorkspace, call: Call) -> WorkspaceLogs:
        workspace = self._supervisor.find(params.workspace)
        return WorkspaceLogs(
            workspace_id=workspace.record.workspace_id, entries=workspace.commands.history(params.limit, LOG_EXCERPT)
        )

    async def follow_logs(self, params: FollowLogs, call: Call) -> LogsFollowed:
        workspace = self._supervisor.find(params.workspace)
        commands = workspace.commands
        if params.cursor is None:
            follower = LogFollower(commands, commands.before_newest(params.limit))
        else:
            follower = LogFollower.at(commands, params.cursor)
        async with aclosing(follower.events()) as events:
            async for event in events:
                await call.emit(event)
        return LogsFollowed(workspace_id=workspace.record.workspace_id)

    async def run_in_vm(self, params: RunInVm, call: Call) -> ExecResult:
        create = CreateWorkspace(environment=params.environment, vcpu_count=params.vcpu_count, mem_mib=params.mem_mib)
        workspace = await self._create(create, call, ephemeral=True)
        try:
            command = ExecWorkspace(
                workspace=workspace.record.workspace_id,
                command=params.command,
                env=params.env,
                stdin=params.stdin,
                timeout_seconds=params.timeout_seconds,
            )
            return await self.exec_workspace(command, call)
        finally:
            with anyio.CancelScope(shield=True):  # bounded by the machine's own graces
                await self._supervisor.delete(workspace)

    # --- environments ------------------------------------------------------------------------------------------------

    async def list_environments(self, params: ListEnvironments, call: Call) -> EnvironmentList:
        return EnvironmentList(environments=list(self._images.list()))

    async def build_environment(self, params: BuildEnvironment, call: Call) -> Environment:
        async with _reporting(call) as report:
            await self._images.ensure_guest(report)
            await self._ensure_environment(params.environment, report, force=params.force)
        return self._images.inspect(params.environment)

    async def inspect_environment(self, params: InspectEnvironment, call: Call) -> Environment:
        return self._images.inspect(params.environment)

    async def prune_environments(self, params: PruneEnvironments, call: Call) -> Pruned:
        return await self._images.prune(self._supervisor.images_in_use(), all=params.all)

    # --- events ------------------------------------------------------------------------------------------------------

    async def list_events(self, params: ListEvents, call: Call) -> EventList:
        return await answer(self._store.events, params, call)


@asynccontextmanager
async def _reporting(call: Call) -> AsyncIterator[Report]:
    """Lets synchronous code report progress; a slow receiver misses steps rather than delaying the work."""
    send, receive = anyio.create_memory_object_stream[Progress](64)

    def report(step: Progress) -> None:
        try:
            send.send_nowait(step)
        except (anyio.WouldBlock, anyio.BrokenResourceError):
            pass

    async def forward() -> None:
        async with receive:
            async for step in receive:
                await call.emit(step)

    async with plain_task_group() as tasks:
        tasks.start_soon(forward, name="progress")
        with send:
            yield report
