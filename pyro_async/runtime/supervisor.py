"""The supervisor: all workspaces of a home, each in a task of the root task group."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from pyro_async.errors import Conflict, HostDiskFull, PyroError, WorkspaceNotFound, WrongState
from pyro_async.faults import fault_point
from pyro_async.groups import plain_task_group
from pyro_async.home import Home
from pyro_async.images.progress import Report
from pyro_async.images.sparse import clone_file
from pyro_async.images.store import EnvironmentImage, GuestImages
from pyro_async.operations import CreateWorkspace, Deleted, Progress
from pyro_async.runtime.admission import Admission, Limits, MemoryUse
from pyro_async.runtime.clock import Clock
from pyro_async.runtime.drivers import Drivers, driver_name
from pyro_async.runtime.events import Happened
from pyro_async.runtime.idle import stop_when_idle
from pyro_async.runtime.leftovers import Leftovers, remove_tree
from pyro_async.runtime.lifecycle import Phase, check_transition
from pyro_async.runtime.log import event
from pyro_async.runtime.store import Store, WorkspaceRecord
from pyro_async.runtime.workspace import Workspace
from pyro_async.vmm.driver import Driver, MachineSpec

__all__ = ["Parts", "Supervisor"]

#: Free space a new workspace must find on the home's disk: room for its records, its output and some work.
MIN_FREE_BYTES: Final = 256 * 1024 * 1024
#: How long undoing a half-made workspace may take.
UNDO_SECONDS: Final = 30.0


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a new workspace is made of; ``upper`` is the pristine image its own disk is a clone of."""

    driver: Driver
    guest: GuestImages
    environment: EnvironmentImage
    upper: Path


class Supervisor:
    """Owns the workspaces.

    Args:
        home: where they live.
        store: where they are recorded.
        drivers: run their machines.
        tasks: the root task group.
        clock: what time it is.
        limits: what the host can bear.
    """

    def __init__(
        self, home: Home, store: Store, drivers: Drivers, tasks: TaskGroup, clock: Clock, limits: Limits
    ) -> None:
        self._home = home
        self._store = store
        self._drivers = drivers
        self._tasks = tasks
        self._clock = clock
        self._workspaces: dict[str, Workspace] = {}
        self._admission = Admission(limits, self._memory_in_use)

    def workspaces(self) -> list[Workspace]:
        """All workspaces, oldest first."""
        return sorted(
            (workspace for workspace in self._workspaces.values() if workspace.record.phase is not Phase.DELETING),
            key=lambda workspace: workspace.record.created_at,
        )

    def images_in_use(self) -> set[str]:
        """Keys of all images that some workspace boots from, or will when it is started again.

        An image's key is the name of the directory that holds it.
        """
        specs = [workspace.record.spec for workspace in self._workspaces.values()]
        return {path.parent.name for spec in specs if spec for path in (spec.kernel, spec.tools, spec.base)}

    def find(self, reference: str) -> Workspace:
        """The workspace of this id or name.

        Raises:
            WorkspaceNotFound: there is none.
        """
        workspace = self._workspaces.get(reference) or self._named(reference)
        if workspace is None or workspace.record.phase is Phase.DELETING:
            raise WorkspaceNotFound(f"there is no workspace {reference!r}", hint="see `pyro workspace list`")
        return workspace

    def _named(self, name: str) -> Workspace | None:
        return next((workspace for workspace in self._workspaces.values() if workspace.record.name == name), None)

    def check_name(self, name: str | None, owner: Workspace | None = None) -> None:
        """Raises Conflict if a name is taken by another workspace."""
        other = name and (self._named(name) or self._workspaces.get(name))
        if other and other is not owner:
            raise Conflict(
                f"the name {name!r} is taken by workspace {other.record.workspace_id}", hint="choose another"
            )

    # --- transitions -------------------------------------------------------------------------------------------------

    async def create(
        self,
        params: CreateWorkspace,
        parts: Parts,
        report: Report,
        *,
        ephemeral: bool = False,
    ) -> Workspace:
        """Makes a workspace and starts it; if that fails or is cancelled nothing stays behind."""
        self.check_name(params.name)
        self._check_space()
        now = self._clock.time()
        workspace_id = os.urandom(6).hex()
        directory = self._home.workspace(workspace_id)
        record = WorkspaceRecord(
            workspace_id=workspace_id,
            name=params.name,
            labels=params.labels,
            environment=parts.environment.name,
            digest=parts.environment.digest,
            phase=Phase.CREATING,
            vcpu_count=params.vcpu_count,
            mem_mib=params.mem_mib,
            created_at=now,
            last_activity_at=now,
            expires_at=None if params.ttl_seconds is None else now + params.ttl_seconds,
            idle_stop_seconds=params.idle_stop_seconds,
            driver=driver_name(parts.driver),
            spec=MachineSpec(
                directory=directory / "vm",
                kernel=parts.guest.kernel,
                initramfs=parts.guest.initramfs,
                tools=parts.guest.tools,
                base=parts.environment.base,
                upper=directory / "upper.ext4",
                vcpu_count=params.vcpu_count,
                mem_mib=params.mem_mib,
            ),
            ephemeral=ephemeral,
        )
        workspace = Workspace(record, directory, parts.driver, self._store, self._clock)
        self._store.save_workspace(
            record, workspace.happened("workspace.created", name=record.name, environment=record.environment)
        )
        fault_point("create.recorded")
        self._workspaces[workspace_id] = workspace
        try:
            async with self._admission.boot(_memory_use(workspace), report):
                await anyio.to_thread.run_sync(_make_disk, directory, parts.upper, directory / "upper.ext4")
                fault_point("create.disk")
                report(Progress(phase="boot", detail=f"booting {parts.environment.name}"))
                await self._tasks.start(self._live, workspace, name=f"workspace {workspace_id}")
        except BaseException as error:
            event("create undone", workspace_id=workspace_id, cause=getattr(error, "code", "cancelled"))
            with anyio.move_on_after(UNDO_SECONDS, shield=True):
                await self._destroy(workspace)
            raise
        event("workspace created", workspace_id=workspace_id, environment=record.environment, driver=record.driver)
        return workspace

    def _memory_in_use(self) -> list[MemoryUse]:
        return [_memory_use(workspace) for workspace in self._workspaces.values() if workspace.has_machine]

    async def _live(self, workspace: Workspace, adopt: bool = False, *, task_status: TaskStatus[None]) -> None:
        """Runs a workspace's machine, and beside it what stops it when nobody uses it."""
        async with plain_task_group() as tasks:
            tasks.start_soon(stop_when_idle, workspace, self._clock, self.stop, name="idle stop")
            await workspace.run(adopt=adopt, task_status=task_status)
            tasks.cancel_scope.cancel()

    def _check_space(self) -> None:
        free = shutil.disk_usage(self._home.root).free
        if free < MIN_FREE_BYTES:
            raise HostDiskFull(
                f"only {free >> 20} MiB are free below {self._home.root}",
                hint=f"a workspace needs {MIN_FREE_BYTES >> 20} MiB to start: delete some, or free space otherwise",
            )

    async def start(self, workspace: Workspace, report: Report) -> None:
        """Boots a stopped or failed workspace on its own disk; does nothing to a running one."""
        if workspace.started:
            return
        # The queue first: who wants to delete the workspace meanwhile need not wait for the boots of others.
        async with self._admission.boot(_memory_use(workspace), report), _transition(workspace):
            if workspace.started:
                return
            self._check_space()
            workspace.record.failure = None
            workspace.enter(Phase.STARTING)
            fault_point("start.recorded")
            report(Progress(phase="boot", detail=f"booting {workspace.record.environment}"))
            try:
                await self._tasks.start(self._live, workspace, name=f"workspace {workspace.record.workspace_id}")
                event("workspace started", workspace_id=workspace.record.workspace_id)
            except PyroError as error:
                workspace.record.failure = str(error)
                workspace.enter(Phase.FAILED)
                fault_point("failure.recorded")
                event("start failed", logging.ERROR, workspace_id=workspace.record.workspace_id, code=error.code)
                raise
            except BaseException:
                workspace.enter(Phase.STOPPED)
                fault_point("stop.finished")
                raise

    async def stop(self, workspace: Workspace, wanted: Callable[[], bool] = lambda: True) -> None:
        """Shuts a workspace down cleanly; does nothing to a stopped one, or if it is not ``wanted`` any more."""
        async with _transition(workspace):
            if workspace.record.phase is Phase.STOPPED or not wanted():
                return
            workspace.enter(Phase.STOPPING)
            fault_point("stop.recorded")
            with anyio.CancelScope(shield=True):  # bounded by the graces of the shutdown itself
                await workspace.stop()
            fault_point("stop.ended")
            if workspace.record.phase is Phase.STOPPING:
                workspace.enter(Phase.STOPPED)
                fault_point("stop.finished")
            event("workspace stopped", workspace_id=workspace.record.workspace_id)

    async def delete(self, workspace: Workspace) -> Deleted:
        """Ends a workspace in whatever state it is and removes all of it."""
        async with _transition(workspace):
            check_transition(workspace.label, workspace.record.phase, Phase.DELETING)
            with anyio.CancelScope(shield=True):  # once begun it is finished; bounded by the machine's own graces
                await self._destroy(workspace)
        event("workspace deleted", workspace_id=workspace.record.workspace_id)
        return Deleted(workspace_id=workspace.record.workspace_id, name=workspace.record.name)

    async def _destroy(self, workspace: Workspace, *happened: Happened) -> None:
        workspace.record.phase = Phase.DELETING
        self._store.save_workspace(workspace.record)
        fault_point("delete.recorded")
        await workspace.kill()
        fault_point("delete.killed")
        workspace.commands.close()
        await anyio.to_thread.run_sync(remove_tree, workspace.directory)
        fault_point("delete.removed")
        name = workspace.record.name
        deleted = workspace.happened("workspace.deleted", name=name)
        self._store.delete_workspace(workspace.record.workspace_id, deleted, *happened)
        fault_point("delete.finished")
        self._workspaces.pop(workspace.record.workspace_id, None)

    # --- the runtime's own start and end -----------------------------------------------------------------------------

    async def recover(self) -> None:
        """Takes over what an earlier process left: adopts running machines, finishes or undoes transitions."""
        leftovers = Leftovers(self._home, self._store)
        for record in self._store.workspaces():
            directory, driver = self._home.workspace(record.workspace_id), self._drivers.named(record.driver)
            self._workspaces[record.workspace_id] = Workspace(record, directory, driver, self._store, self._clock)
        fault_point("recover.begun")
        await leftovers.remove_strangers(self._workspaces)
        async with plain_task_group() as tasks:
            for workspace in list(self._workspaces.values()):
                tasks.start_soon(self._recover, workspace, leftovers, name=f"recover {workspace.record.workspace_id}")
        fault_point("recover.finished")

    async def _recover(self, workspace: Workspace, leftovers: Leftovers) -> None:
        """Leaves a workspace in a state that lasts, with a machine if, and only if, it is started."""
        record = workspace.record
        if record.phase in (Phase.CREATING, Phase.DELETING) or record.ephemeral:
            finished = record.phase is Phase.DELETING
            await leftovers.reap(workspace)
            kind, transition = ("recovery.finished", "delete") if finished else ("recovery.undone", "create")
            await self._destroy(workspace, workspace.happened(kind, transition=transition))
        elif record.phase is Phase.STARTED:
            try:
                await self._adopt(workspace)
            except PyroError as error:
                await leftovers.reap(workspace)
                workspace.give_up(error)
        elif record.phase is Phase.STARTING:
            await leftovers.reap(workspace)
            workspace.commands.lose()
            workspace.enter(Phase.STOPPED, workspace.happened("recovery.undone", transition="start"))
            fault_point("stop.finished")
        elif record.phase is Phase.STOPPING:
            await self._finish_stop(workspace, leftovers)
        else:
            await leftovers.reap(workspace)

    async def _adopt(self, workspace: Workspace) -> None:
        await self._tasks.start(self._live, workspace, True, name=f"workspace {workspace.record.workspace_id}")
        self._store.record(workspace.happened("recovery.adopted"))
        fault_point("recover.adopted")

    async def _finish_stop(self, workspace: Workspace, leftovers: Leftovers) -> None:
        """Shuts a machine down in good order after all: killing it could cost what its disk has not taken yet."""
        try:
            await self._adopt(workspace)
            await workspace.stop()
        except PyroError:
            pass  # it had ended before, or does not answer
        await leftovers.reap(workspace)
        workspace.commands.lose()
        fault_point("stop.ended")
        if workspace.record.phase is Phase.STOPPING:
            workspace.enter(Phase.STOPPED, workspace.happened("recovery.finished", transition="stop"))
            fault_point("stop.finished")

    async def set_clocks(self) -> None:
        """Gives every running guest the host's time."""
        async with plain_task_group() as tasks:
            for workspace in self.workspaces():
                tasks.start_soon(workspace.set_clock)

    async def close(self, *, release: bool) -> None:
        """Ends all workspaces' tasks, leaving their machines running or stopping them cleanly."""
        async with plain_task_group() as tasks:
            for workspace in self.workspaces():
                tasks.start_soon(self._close, workspace, release, name=f"close {workspace.record.workspace_id}")

    async def _close(self, workspace: Workspace, release: bool) -> None:
        if workspace.record.phase is not Phase.STARTED:
            return
        if workspace.record.ephemeral:
            await self.delete(workspace)
        elif release:
            await workspace.release()
        else:
            try:
                await self.stop(workspace)
            except (WorkspaceNotFound, WrongState):
                pass  # it was being deleted, or its machine ended, just before its turn came


@asynccontextmanager
async def _transition(workspace: Workspace) -> AsyncIterator[None]:
    """Waits for the transition under way, then keeps others waiting.

    Raises:
        WorkspaceNotFound: it was deleted meanwhile.
    """
    async with workspace.transition:
        if workspace.record.phase is Phase.DELETING:
            raise WorkspaceNotFound(f"workspace {workspace.label} was deleted")
        yield


def _memory_use(workspace: Workspace) -> MemoryUse:
    record = workspace.record
    return MemoryUse(
        workspace_id=record.workspace_id,
        label=workspace.label,
        mem_mib=record.mem_mib,
        quiet_seconds=workspace.activity.quiet_seconds,
    )


def _make_disk(directory: Path, template: Path, upper: Path) -> None:
    (directory / "vm").mkdir(parents=True)
    try:
        clone_file(template, upper)
    except OSError as error:
        raise HostDiskFull(f"cannot make the workspace's disk: {error.strerror}", hint="free some space") from error
