"""Parameters and results of every operation, and the OPERATIONS table: data only, no behaviour.

Dispatch, the sync client, the docs' table and the parity test are derived from here. Constraints stand in the
annotations, so that every surface refuses the same input with the same words. Times are seconds since the epoch, sizes
bytes, unless a name says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "BASELINE",
    "INLINE_OUTPUT_LIMIT",
    "OPERATIONS",
    "PATTERNS",
    "WORKSPACE_PATH",
    "AttachExec",
    "BuildEnvironment",
    "CancelExec",
    "CreateWorkspace",
    "DeleteWorkspace",
    "Deleted",
    "Environment",
    "EnvironmentList",
    "Event",
    "EventList",
    "ExecEvent",
    "ExecOutput",
    "ExecPage",
    "ExecResult",
    "ExecStarted",
    "ExecWorkspace",
    "FollowLogs",
    "GuestResources",
    "InspectEnvironment",
    "ListEnvironments",
    "ListEvents",
    "ListWorkspaces",
    "LogDropped",
    "LogEnded",
    "LogEvent",
    "LogOutput",
    "LogStarted",
    "LogsFollowed",
    "LogsWorkspace",
    "Operation",
    "OutputDropped",
    "OutputPiece",
    "Params",
    "Progress",
    "PruneEnvironments",
    "Pruned",
    "ReadExec",
    "ReapExpired",
    "Reaped",
    "Resources",
    "Result",
    "RunInVm",
    "StartWorkspace",
    "StatusWorkspace",
    "StopWorkspace",
    "UpdateWorkspace",
    "VmmResources",
    "WaitExec",
    "Workspace",
    "WorkspaceList",
    "WorkspaceLogs",
]

WORKSPACE_PATH: Final = "/workspace"
BASELINE: Final = "baseline"
#: Bytes of stdout, and of stderr, that a result carries; of longer output the head and the tail are kept.
INLINE_OUTPUT_LIMIT: Final = 1024 * 1024

NAME_PATTERN: Final = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
VARIABLE_PATTERN: Final = r"\A[A-Za-z_][A-Za-z0-9_]{0,63}\Z"

#: The patterns in words, for people and models who broke one.
PATTERNS: Final = {
    NAME_PATTERN: "1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit",
    VARIABLE_PATTERN: "1 to 64 letters, digits or '_', not starting with a digit",
}

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description=PATTERNS[NAME_PATTERN])]
LabelValue = Annotated[str, Meta(max_length=256)]
Labels = dict[Name, LabelValue]
WorkspaceRef = Annotated[str, Meta(min_length=1, max_length=64, description="a workspace's id or its name")]
EnvironmentName = Annotated[str, Meta(min_length=1, max_length=256, description="an environment, such as debian:12")]
VariableName = Annotated[str, Meta(pattern=VARIABLE_PATTERN, description=PATTERNS[VARIABLE_PATTERN])]
VcpuCount = Annotated[int, Meta(ge=1, le=8)]
MemMib = Annotated[int, Meta(ge=128, le=32768)]
Timeout = Annotated[
    float, Meta(gt=0, le=7 * 86400, description="seconds until the command and its children are killed")
]
#: Ten years: beyond that a slip of the pen is likelier than a wish.
LONGEST_LIFE: Final = 3653 * 86400
TtlSeconds = Annotated[
    int, Meta(ge=60, le=LONGEST_LIFE, description="seconds from now until the workspace is deleted; never by default")
]
IdleStopSeconds = Annotated[
    int,
    Meta(
        ge=60,
        le=LONGEST_LIFE,
        description="seconds without activity until the workspace is stopped, its disk kept; never by default",
    ),
]
Cursor = Annotated[
    int, Meta(ge=0, description="bytes of output before a place, stdout and stderr together, in the order they came")
]
ExecId = Annotated[str, Meta(min_length=1, max_length=64, description="a command's id")]
GuestPath = Annotated[str, Meta(min_length=1, max_length=4096)]
Command = (
    Annotated[str, Meta(min_length=1, description="run by /bin/sh -c")]
    | Annotated[list[str], Meta(min_length=1, description="argv, run as it is")]
)
State = Literal["created", "started", "stopped", "failed"]


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parameter types."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all result types."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """A step of a longer operation, streamed while it runs.

    Attributes:
        phase: short name of what is being done, stable for the duration of that step.
        detail: one line for people.
        fraction: 0 to 1 where the amount of work is known.
    """

    phase: str
    detail: str = ""
    fraction: float | None = None


# --- workspaces -------------------------------------------------------------------------------------------------------


class CreateWorkspace(Params, frozen=True):
    """Creates a workspace from an environment and starts it; builds the environment first if it is missing."""

    environment: EnvironmentName
    name: Name | None = None
    labels: Labels = {}
    vcpu_count: VcpuCount = 1
    mem_mib: MemMib = 512
    ttl_seconds: TtlSeconds | None = None
    idle_stop_seconds: IdleStopSeconds | None = None


class ListWorkspaces(Params, frozen=True):
    """Lists all workspaces, oldest first."""


class StatusWorkspace(Params, frozen=True):
    """Describes one workspace and, if it runs, what it uses at this moment."""

    workspace: WorkspaceRef


class UpdateWorkspace(Params, frozen=True):
    """Changes a workspace's name and labels; what is not given stays."""

    workspace: WorkspaceRef
    name: Name | None = None
    clear_name: bool = False
    labels: Labels = {}
    clear_labels: list[Name] = []


class DeleteWorkspace(Params, frozen=True):
    """Ends a workspace's VM and destroys its disk and records."""

    workspace: WorkspaceRef


class StopWorkspace(Params, frozen=True):
    """Ends all commands, shuts the VM down cleanly and keeps the disk."""

    workspace: WorkspaceRef


class StartWorkspace(Params, frozen=True):
    """Starts a stopped or failed workspace with its disk as it was."""

    workspace: WorkspaceRef


class ReapExpired(Params, frozen=True):
    """Deletes the workspaces whose time is up now instead of within the next moments, and waits until they are gone."""


class Reaped(Result, frozen=True):
    """The ids of the workspaces that were deleted."""

    workspace_ids: list[str]


class GuestResources(Result, frozen=True):
    """What a guest uses, by its own account.

    Attributes:
        uptime_seconds: since its kernel started.
        cpu_seconds: its CPUs have been busy since then, all together.
        mem_total_bytes, mem_available_bytes: available is what programs could still get, caches included.
        disk_total_bytes, disk_free_bytes: of the workspace's disk.
        process_count: processes, kernel threads included.
    """

    uptime_seconds: float
    cpu_seconds: float
    mem_total_bytes: int
    mem_available_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    process_count: int


class VmmResources(Result, frozen=True):
    """What a workspace's VM takes of the host.

    Attributes:
        pid: of its VMM's process.
        rss_bytes: memory resident on the host.
        pss_bytes: the same with shared pages counted in part; None where the kernel does not tell.
        cpu_seconds: used by the VMM and its guest since the VM started.
    """

    pid: int
    rss_bytes: int
    pss_bytes: int | None
    cpu_seconds: float


class Resources(Result, frozen=True):
    """What a running workspace uses at this moment.

    Attributes:
        measured_at: when the VMM's figures were read.
        guest: None if the guest did not answer at once.
        vmm: None if the VMM has just ended.
        disk_allocated_bytes: what the workspace's disk takes on the host.
        running_commands: how many commands run in it.
    """

    measured_at: float
    guest: GuestResources | None
    vmm: VmmResources | None
    disk_allocated_bytes: int
    running_commands: int


class CommandSummary(Result, frozen=True):
    """The last command of a workspace in short."""

    exec_id: str
    command: Command
    exit_code: int | None
    started_at: float


class Workspace(Result, frozen=True):
    """One workspace.

    Attributes:
        workspace_id: 12 lower-case hex digits, for ever this workspace's.
        state: created (being started), started, stopped or failed.
        failure: why it failed, with the end of the guest's console; None otherwise.
        driver: ``qemu`` or ``firecracker``, with its acceleration: ``qemu/tcg``.
        command_count: commands run so far.
        expires_at: when it will be deleted, None for never.
        idle_stop_seconds: after so long without activity it is stopped, None for never.
        resources: what it uses at this moment; only from ``status_workspace``, and only of a running one.
    """

    workspace_id: str
    name: str | None
    labels: dict[str, str]
    environment: str
    state: State
    failure: str | None
    driver: str
    vcpu_count: int
    mem_mib: int
    created_at: float
    last_activity_at: float
    command_count: int
    last_command: CommandSummary | None
    workspace_path: str = WORKSPACE_PATH
    expires_at: float | None = None
    idle_stop_seconds: int | None = None
    resources: Resources | None = None


class WorkspaceList(Result, frozen=True):
    """All workspaces of a home."""

    workspaces: list[Workspace]


class Deleted(Result, frozen=True):
    """What was deleted."""

    workspace_id: str
    name: str | None


# --- commands ---------------------------------------------------------------------------------------------------------


class ExecWorkspace(Params, frozen=True):
    """Runs a command in a workspace, streams its output and returns how it ended.

    Attributes:
        env: added to the default environment.
        user: name or ``uid[:gid]`` in the guest.
        stdin: whether the caller sends standard input; without it stdin is empty.
        timeout_seconds: None means no limit.
        detach: return as soon as the command runs; its end and its output are asked for by its exec_id.
        idempotency_key: the same key again, in the same workspace, means the same command: it is not run twice.
    """

    workspace: WorkspaceRef
    command: Command
    cwd: GuestPath = WORKSPACE_PATH
    env: dict[VariableName, str] = {}
    user: Annotated[str, Meta(min_length=1, max_length=64)] = "root"
    stdin: bool = False
    timeout_seconds: Timeout | None = None
    detach: bool = False
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class WaitExec(Params, frozen=True):
    """Waits for a command's end and returns its result.

    Attributes:
        wait_seconds: how long at most; after that the command goes on, and the result so far has no exit_code.
    """

    workspace: WorkspaceRef
    exec_id: ExecId
    wait_seconds: Annotated[float, Meta(ge=0, le=7 * 86400, description="seconds to wait at most")] | None = None


class AttachExec(Params, frozen=True):
    """Streams a command's output from a cursor on until its end; leaving does not touch the command."""

    workspace: WorkspaceRef
    exec_id: ExecId
    cursor: Cursor = 0


class ReadExec(Params, frozen=True):
    """Returns a page of a command's output, without waiting for more.

    Attributes:
        max_bytes: of output, before it is decoded.
    """

    workspace: WorkspaceRef
    exec_id: ExecId
    cursor: Cursor = 0
    max_bytes: Annotated[int, Meta(ge=4, le=1024 * 1024)] = 16 * 1024


class CancelExec(Params, frozen=True):
    """Kills a running command with all its children; does nothing to one that has ended."""

    workspace: WorkspaceRef
    exec_id: ExecId


class ExecStarted(Result, frozen=True, tag="started"):
    """The first event of a command; ``cursor`` is where the output that follows begins."""

    workspace_id: str
    exec_id: str
    sequence: int
    started_at: float
    cursor: int = 0


class ExecOutput(Result, frozen=True, tag="output"):
    """A piece of output, in the order it was produced, cut at arbitrary places; ``cursor`` is just behind it."""

    stream: Literal["stdout", "stderr"]
    data: bytes
    cursor: int = 0


class OutputDropped(Result, frozen=True, tag="dropped"):
    """Output is no longer kept: what follows begins at ``cursor``."""

    cursor: int


class OutputPiece(Result, frozen=True):
    """Text of one stream, decoded as UTF-8, each undecodable byte replaced by U+FFFD."""

    stream: Literal["stdout", "stderr"]
    text: str


class ExecPage(Result, frozen=True):
    """A page of a command's output.

    Attributes:
        cursor: where the page begins: as asked for, or later if that is no longer kept.
        next_cursor: where the next page begins; never within a character of valid UTF-8.
        begin: the oldest output that is still kept.
        end: the end of the output so far.
        output: in the order in which it was produced.
        truncated: output between the cursor asked for and ``cursor`` was dropped.
        ended: the command has ended, so that nothing follows ``end``.
    """

    workspace_id: str
    exec_id: str
    cursor: int
    next_cursor: int
    begin: int
    end: int
    output: list[OutputPiece]
    truncated: bool
    ended: bool


class ExecResult(Result, frozen=True, tag="result"):
    """How a command ended.

    Attributes:
        sequence: 1 for the workspace's first command.
        exit_code: 0 to 255; 124 on timeout, 128 + signal if a signal ended it, None while it runs.
        cause: ``oom`` or ``enospc`` where the guest ran out of memory or disk, ``lost`` where its VM died, else None.
        stdout, stderr: decoded as UTF-8, each undecodable byte replaced by U+FFFD.
        stdout_truncated, stderr_truncated: only head and tail are there; a line in between says what was left out.
    """

    workspace_id: str
    exec_id: str
    sequence: int
    command: Command
    cwd: str
    started_at: float
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    cancelled: bool = False
    cause: str | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    duration_ms: float = 0.0


ExecEvent = ExecStarted | ExecOutput | OutputDropped | ExecResult


class LogsWorkspace(Params, frozen=True):
    """Returns a workspace's commands with their output, oldest first.

    Attributes:
        limit: at most this many, the newest.
    """

    workspace: WorkspaceRef
    limit: Annotated[int, Meta(ge=1, le=1000)] = 20


class WorkspaceLogs(Result, frozen=True):
    """Commands of a workspace; each output is cut to a few KiB, see ``truncated``."""

    workspace_id: str
    entries: list[ExecResult]


class FollowLogs(Params, frozen=True):
    """Streams the starts, output and ends of all commands of a workspace, until the workspace is deleted.

    Attributes:
        limit: begin with at most this many commands, the newest.
        cursor: begin behind the event that carried this cursor instead.
    """

    workspace: WorkspaceRef
    limit: Annotated[int, Meta(ge=0, le=1000)] = 20
    cursor: str | None = None


class LogStarted(Result, frozen=True, tag="started"):
    """A command has started; ``command`` is one line, as one would type it, cut to a KiB."""

    exec_id: str
    sequence: int
    command: str
    started_at: float
    cursor: str


class LogOutput(Result, frozen=True, tag="output"):
    """A piece of a command's output."""

    exec_id: str
    stream: Literal["stdout", "stderr"]
    data: bytes
    cursor: str


class LogDropped(Result, frozen=True, tag="dropped"):
    """Output of a command is no longer kept; what follows is younger."""

    exec_id: str
    cursor: str


class LogEnded(Result, frozen=True, tag="ended"):
    """A command has ended; fields as in :class:`ExecResult`."""

    exec_id: str
    exit_code: int | None
    timed_out: bool
    cancelled: bool
    cause: str | None
    cursor: str


LogEvent = LogStarted | LogOutput | LogDropped | LogEnded


class LogsFollowed(Result, frozen=True):
    """The workspace was deleted, so its log is over."""

    workspace_id: str


class RunInVm(Params, frozen=True):
    """Runs one command in a new workspace that is deleted afterwards."""

    environment: EnvironmentName
    command: Command
    vcpu_count: VcpuCount = 1
    mem_mib: MemMib = 512
    env: dict[VariableName, str] = {}
    stdin: bool = False
    timeout_seconds: Timeout | None = None


# --- environments -----------------------------------------------------------------------------------------------------


class ListEnvironments(Params, frozen=True):
    """Lists environments that are built or can be built by name."""


class BuildEnvironment(Params, frozen=True):
    """Builds an environment, or with ``force`` builds it anew."""

    environment: EnvironmentName
    force: bool = False


class InspectEnvironment(Params, frozen=True):
    """Describes one environment."""

    environment: EnvironmentName


class PruneEnvironments(Params, frozen=True):
    """Removes images that no name and no workspace refers to.

    Attributes:
        all: also those that only a name refers to, so that nothing but what workspaces use stays.
    """

    all: bool = False


class Environment(Result, frozen=True):
    """One environment.

    Attributes:
        digest: checksum of its image, hex; None if it is not built.
        size_bytes: allocated size of its image on the host.
        packages: what the recipe installs beyond the base system.
    """

    name: str
    description: str
    built: bool
    digest: str | None = None
    size_bytes: int = 0
    created_at: float | None = None
    packages: list[str] = []


class EnvironmentList(Result, frozen=True):
    """All known environments."""

    environments: list[Environment]


class Pruned(Result, frozen=True):
    """What was removed: digests, and bytes freed."""

    removed: list[str]
    bytes_freed: int


# --- events -----------------------------------------------------------------------------------------------------------


class ListEvents(Params, frozen=True):
    """Tells what has happened to workspaces and commands, oldest first; with ``follow`` also what happens from now on.

    Attributes:
        after: cursor: the event_id of the last event that is known already; 0 for all that are kept.
        limit: end after this many; by default after 1000, and with ``follow`` never.
        follow: deliver events one by one, also those still to come.
    """

    after: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    follow: bool = False


class Event(Result, frozen=True, tag="event"):
    """Something that happened, recorded together with the change it tells of.

    Attributes:
        event_id: 1, 2, 3, …: a cursor for ``after``. A gap means that older events were dropped before they were read.
        kind: ``workspace.started``, ``exec.ended``, ``recovery.adopted``, …
        workspace_id: which workspace it is about, None if about none.
        detail: depends on the kind.
    """

    event_id: int
    time: float
    kind: str
    workspace_id: str | None = None
    detail: dict[str, str | int | float | bool | None] = {}


class EventList(Result, frozen=True):
    """Events, oldest first; none if they were delivered one by one.

    Attributes:
        cursor: go on from here: the last event's id, or what was asked for if there was none.
    """

    events: list[Event]
    cursor: int


# --- the table --------------------------------------------------------------------------------------------------------


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of pyro.

    Attributes:
        name: the SDK's method.
        params, result: its types.
        cli: the command's words after ``pyro``.
        mcp: the tool's name; None if models have no such tool.
        mcp_absent: why they have none.
        events: type of the events streamed before the result, None if there are none.
        input: whether bytes are streamed in.
        read_only, destructive, idempotent, open_world: hints, as MCP defines them.
    """

    name: str
    params: type[Params]
    result: type[Result]
    cli: str
    mcp: str | None = None
    mcp_absent: str | None = None
    events: Any = None
    input: bool = False
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False
    open_world: bool = False


OPERATIONS: Final[dict[str, Operation]] = {
    operation.name: operation
    for operation in (
        Operation(
            name="create_workspace",
            params=CreateWorkspace,
            result=Workspace,
            cli="workspace create",
            mcp="workspace_create",
            events=Progress,
            open_world=True,  # fetches the environment's packages if it has to be built
        ),
        Operation(
            name="list_workspaces",
            params=ListWorkspaces,
            result=WorkspaceList,
            cli="workspace list",
            mcp="workspace_list",
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="status_workspace",
            params=StatusWorkspace,
            result=Workspace,
            cli="workspace status",
            mcp="workspace_status",
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="update_workspace",
            params=UpdateWorkspace,
            result=Workspace,
            cli="workspace update",
            mcp="workspace_update",
            idempotent=True,
        ),
        Operation(
            name="delete_workspace",
            params=DeleteWorkspace,
            result=Deleted,
            cli="workspace delete",
            mcp="workspace_delete",
            destructive=True,
        ),
        Operation(
            name="exec_workspace",
            params=ExecWorkspace,
            result=ExecResult,
            cli="workspace exec",
            mcp="workspace_exec",
            events=ExecStarted | ExecOutput | OutputDropped,
            input=True,
            destructive=True,
        ),
        Operation(
            name="wait_exec",
            params=WaitExec,
            result=ExecResult,
            cli="workspace wait",
            mcp="exec_wait",
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="attach_exec",
            params=AttachExec,
            result=ExecResult,
            cli="workspace attach",
            mcp_absent="a model reads pages with exec_read",
            events=ExecStarted | ExecOutput | OutputDropped,
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="read_exec",
            params=ReadExec,
            result=ExecPage,
            cli="workspace read",
            mcp="exec_read",
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="cancel_exec",
            params=CancelExec,
            result=ExecResult,
            cli="workspace cancel",
            mcp="exec_cancel",
            destructive=True,
            idempotent=True,
        ),
        Operation(
            name="logs_workspace",
            params=LogsWorkspace,
            result=WorkspaceLogs,
            cli="workspace logs",
            mcp="workspace_logs",
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="follow_logs",
            params=FollowLogs,
            result=LogsFollowed,
            cli="workspace logs --follow",
            mcp_absent="a model reads pages with exec_read",
            events=LogStarted | LogOutput | LogDropped | LogEnded,
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="stop_workspace",
            params=StopWorkspace,
            result=Workspace,
            cli="workspace stop",
            mcp="workspace_stop",
            idempotent=True,
        ),
        Operation(
            name="start_workspace",
            params=StartWorkspace,
            result=Workspace,
            cli="workspace start",
            mcp="workspace_start",
            events=Progress,
            idempotent=True,
        ),
        Operation(
            name="reap_expired",
            params=ReapExpired,
            result=Reaped,
            cli="workspace reap",
            mcp_absent="what has expired is deleted without anybody asking",
            destructive=True,
            idempotent=True,
        ),
        Operation(
            name="run_in_vm",
            params=RunInVm,
            result=ExecResult,
            cli="run",
            mcp="vm_run",
            events=Progress | ExecStarted | ExecOutput,
            input=True,
            destructive=True,
            open_world=True,  # fetches the environment's packages if it has to be built
        ),
        Operation(
            name="list_environments",
            params=ListEnvironments,
            result=EnvironmentList,
            cli="env list",
            mcp="env_list",
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="build_environment",
            params=BuildEnvironment,
            result=Environment,
            cli="env build",
            mcp_absent="workspace_create and vm_run build what is missing; to build anew is for whoever owns the host",
            events=Progress,
            idempotent=True,
            open_world=True,  # fetches the environment's packages if it has to be built
        ),
        Operation(
            name="inspect_environment",
            params=InspectEnvironment,
            result=Environment,
            cli="env inspect",
            mcp_absent="env_list carries the same fields",
            read_only=True,
            idempotent=True,
        ),
        Operation(
            name="prune_environments",
            params=PruneEnvironments,
            result=Pruned,
            cli="env prune",
            mcp_absent="what may go from the host's disk is for its owner to decide",
            destructive=True,
            idempotent=True,
        ),
        Operation(
            name="list_events",
            params=ListEvents,
            result=EventList,
            cli="events",
            mcp_absent="a model sees what its own calls return; the record of all is for the host's owner",
            events=Event,
            read_only=True,
            idempotent=True,
        ),
    )
}
