"""Results and failures in words: the text beside the structured content of a tool's result."""

from __future__ import annotations

import shlex
from functools import singledispatch
from typing import Final

import msgspec

from pyro_async.errors import Failure, PyroError
from pyro_async.operations import (
    Command,
    Deleted,
    EnvironmentList,
    ExecPage,
    ExecResult,
    Result,
    Workspace,
    WorkspaceList,
    WorkspaceLogs,
)

__all__ = ["FOR_THE_USER", "NEXT_STEPS", "describe", "failure_of"]

#: What to do next after a failure, where that is another tool or the user's; the error's own hint speaks of the CLI.
NEXT_STEPS: Final = {
    "workspace_not_found": "call workspace_list for the names and ids there are, or workspace_create to make one",
    "environment_not_found": "use debian:12, or one of those that env_list names",
    "exec_not_found": "call workspace_logs for the exec_ids of this workspace",
    "wrong_state": "see its state with workspace_status; start a stopped or failed one with workspace_start",
    "workspace_failed": "its disk is kept: call workspace_start, or make another one with workspace_create",
    "guest_unresponsive": "call workspace_status; if it has failed, workspace_start starts it on its disk",
    "link_lost": "whether it was carried out is unknown: look with workspace_status or workspace_logs, then try again",
    "internal_error": "this is a defect in pyro: do not repeat the same call, tell the user",
}
#: Failures of the host or the installation, which only the user can mend.
FOR_THE_USER: Final = frozenset(
    {
        "daemon_unavailable",
        "driver_unavailable",
        "environment_build_failed",
        "home_busy",
        "home_unusable",
        "host_disk_full",
        "protocol_error",
        "setup_required",
        "unknown_operation",
        "version_mismatch",
    }
)
_CAUSES: Final = {
    "oom": "the workspace ran out of memory: use one with more mem_mib",
    "enospc": "the workspace's disk is full: delete files in it",
    "lost": "the workspace's VM ended while it ran: see workspace_status",
}


def failure_of(error: PyroError) -> Failure:
    """Returns the failure as a model should see it: the hint is the next step that it, or its user, can take."""
    hint = NEXT_STEPS.get(error.code, error.hint)
    if error.code in FOR_THE_USER:
        hint = f"tell the user, who can mend this: {error.hint}" if error.hint else "tell the user, who can mend this"
    return Failure(code=error.code, message=error.message, hint=hint)


@singledispatch
def describe(result: Result) -> str:
    """Returns the result in a few words and, where that is what counts, with its output."""
    return msgspec.json.encode(result).decode()


@describe.register
def _(result: Workspace) -> str:
    lines = [
        f"workspace {_name(result)} is {result.state}: {result.environment}, {result.vcpu_count} vCPU, "
        f"{result.mem_mib} MiB; commands so far: {result.command_count}"
    ]
    if result.labels:
        lines.append("labels: " + ", ".join(f"{key}={value}" for key, value in result.labels.items()))
    if result.failure:
        lines.append(f"failure: {result.failure}")
    return "\n".join(lines)


@describe.register
def _(result: WorkspaceList) -> str:
    if not result.workspaces:
        return "there are no workspaces; workspace_create makes one"
    return "\n".join(f"{_name(each)}: {each.state}, {each.environment}" for each in result.workspaces)


@describe.register
def _(result: Deleted) -> str:
    return f"deleted workspace {_name(result)}"


@describe.register
def _(result: ExecResult) -> str:
    lines = [f"{_ending(result)} (exec_id {result.exec_id})"]
    if result.cause is not None:
        lines.append(f"cause: {_CAUSES.get(result.cause, result.cause)}")
    if result.stdout_truncated or result.stderr_truncated:
        lines.append("only head and tail of the output are here; to see all, send it to a file and read that in parts")
    for name, output in (("stdout", result.stdout), ("stderr", result.stderr)):
        if output:
            lines += [f"--- {name}", output.removesuffix("\n")]
    return "\n".join(lines if result.stdout or result.stderr else [*lines, "no output"])


@describe.register
def _(result: ExecPage) -> str:
    state = "ended" if result.ended else "still runs"
    lines = [f"output from {result.cursor} to {result.next_cursor} of {result.end}; the command {state}"]
    if result.truncated:
        lines.append("what was before is no longer kept")
    if result.next_cursor < result.end:
        lines.append(f"there is more: cursor {result.next_cursor}")
    for piece in result.output:
        lines += [f"--- {piece.stream}", piece.text.removesuffix("\n")]
    return "\n".join(lines)


@describe.register
def _(result: WorkspaceLogs) -> str:
    if not result.entries:
        return "no command has run in this workspace yet"
    return "\n\n".join(f"$ {_command(entry.command)}\n{describe(entry)}" for entry in result.entries)


@describe.register
def _(result: EnvironmentList) -> str:
    return "\n".join(
        f"{each.name}: {each.description}{'' if each.built else ' (not built yet)'}" for each in result.environments
    )


def _name(thing: Workspace | Deleted) -> str:
    return f"{thing.name} ({thing.workspace_id})" if thing.name else thing.workspace_id


def _command(command: Command) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def _ending(result: ExecResult) -> str:
    if result.exit_code is None:
        return "it still runs" if result.cause is None else "it has no exit code"
    ending = f"exit code {result.exit_code} after {result.duration_ms / 1000:.2f} s"
    if result.timed_out:
        return f"{ending}: timed out and was killed with its children"
    if result.cancelled:
        return f"{ending}: cancelled and killed with its children"
    return f"{ending}: ended by signal {result.signal}" if result.signal is not None else ending
