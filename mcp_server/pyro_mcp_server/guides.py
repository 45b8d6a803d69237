"""What a model is told: about the server, each tool and each parameter, and which tools a profile offers. Data only."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["DEFAULT_PROFILE", "GUIDES", "PARAMETERS", "PROFILES", "Guide", "Profile"]


class Guide(NamedTuple):
    """How to use one tool.

    Attributes:
        title: for people.
        description: what it does, when to use it and when not, and an example of its arguments.
    """

    title: str
    description: str


class Profile(NamedTuple):
    """What a server offers.

    Attributes:
        tools: their names.
        instructions: what a model should know before it uses any of them.
    """

    tools: frozenset[str]
    instructions: str


GUIDES: Final[dict[str, Guide]] = {
    "workspace_create": Guide(
        "Create a workspace",
        "Creates a Linux microVM of your own and starts it; returns when commands can run in it. Use it at the start "
        "of a task of several steps, and pass the name you gave, or workspace_id, to the other tools. Do not create "
        "one per command: a workspace keeps files and processes between calls. Takes seconds, or minutes if its "
        "environment has to be built first. Environments: debian:12 (git, python3, curl), debian:12-build (also "
        "compilers, make, cmake, pip), debian:12-base (nothing else).\n"
        'Example: {"environment": "debian:12", "name": "fix-login", "mem_mib": 1024}',
    ),
    "workspace_list": Guide(
        "List workspaces",
        "Lists all workspaces, oldest first, with names, ids and states. Use it to find one made earlier.\nExample: {}",
    ),
    "workspace_status": Guide(
        "Describe a workspace",
        "Describes one workspace: state, why it failed, size, last command. Use it after an error about a workspace; "
        'there is no need to poll it after workspace_create.\nExample: {"workspace": "fix-login"}',
    ),
    "workspace_update": Guide(
        "Rename or label a workspace",
        "Changes a workspace's name and labels; what is not given stays as it is. It does not change CPUs or memory.\n"
        'Example: {"workspace": "fix-login", "name": "review", "labels": {"team": "core"}}',
    ),
    "workspace_delete": Guide(
        "Delete a workspace",
        "Ends a workspace and destroys its disk, for good. Use it when a task is done and nothing in the workspace is "
        'needed any more; to keep the disk use workspace_stop.\nExample: {"workspace": "fix-login"}',
    ),
    "workspace_exec": Guide(
        "Run a command in a workspace",
        "Runs a command in a workspace as root, in /workspace, waits for its end and returns exit code, stdout and "
        "stderr. A string is run by /bin/sh -c, a list as it is. Each call is a new process: cwd and environment "
        "variables do not carry over, files and background processes do. Set timeout_seconds for whatever might not "
        "end; start servers in the background (`server >log 2>&1 &`), long builds and tests with detach. Not for "
        "programs that need a terminal. To write a file pass its content as stdin.\n"
        'Examples: {"workspace": "fix-login", "command": "cd repo && python3 -m pytest -q", "timeout_seconds": 300}; '
        '{"workspace": "fix-login", "command": "cat > app.py", "stdin": "print(42)\\n"}',
    ),
    "exec_wait": Guide(
        "Wait for a running command",
        "Waits until a command has ended and returns its exit code, stdout and stderr. Use it for one that was started "
        "with detach, or whose call was cut off. With wait_seconds it returns after that time at the latest; without "
        "an exit code the command still runs.\n"
        'Example: {"workspace": "fix-login", "exec_id": "9f3c51d0a2be", "wait_seconds": 60}',
    ),
    "exec_read": Guide(
        "Read a command's output in pages",
        "Returns a page of what a command has printed, in the order it was printed, without waiting for more. Use it "
        "to look at one that runs, or at all of a long output; begin with cursor 0, go on with next_cursor.\n"
        'Example: {"workspace": "fix-login", "exec_id": "9f3c51d0a2be", "cursor": 16384}',
    ),
    "exec_cancel": Guide(
        "Kill a running command",
        "Kills a command that still runs, with all its children, and returns what it printed. Use it for a command "
        "that another call started; workspace_logs has the exec_ids. One that has ended is left alone.\n"
        'Example: {"workspace": "fix-login", "exec_id": "9f3c51d0a2be"}',
    ),
    "workspace_logs": Guide(
        "Read earlier commands",
        "Returns the latest commands of a workspace with exit codes and output, oldest first. Use it to see what ran "
        "before you came, or after a connection was lost; workspace_exec returns its own output already.\n"
        'Example: {"workspace": "fix-login", "limit": 5}',
    ),
    "workspace_stop": Guide(
        "Stop a workspace",
        "Kills all commands of a workspace, shuts it down cleanly and keeps its disk. Use it to free the host's memory "
        'while a task pauses; memory, processes, /tmp and /run are lost.\nExample: {"workspace": "fix-login"}',
    ),
    "workspace_start": Guide(
        "Start a stopped workspace",
        "Starts a stopped or failed workspace on its disk as it was left. Not needed after workspace_create.\n"
        'Example: {"workspace": "fix-login"}',
    ),
    "vm_run": Guide(
        "Run one command in a new VM",
        "Runs one command in a new Linux microVM that is deleted afterwards, files and all. Use it for a single "
        "untrusted or throw-away command; for several steps use workspace_create and workspace_exec. Environments: "
        "debian:12 (git, python3, curl), debian:12-build (also compilers, make, cmake, pip), debian:12-base. No "
        "network.\n"
        'Example: {"environment": "debian:12", "command": ["python3", "-"], "stdin": "print(6 * 7)\\n"}',
    ),
    "env_list": Guide(
        "List environments",
        "Lists the environments that workspaces can start from, and whether they are built already; one that is not is "
        "built by workspace_create.\nExample: {}",
    ),
}

#: Of every parameter of every tool; a name means the same everywhere.
PARAMETERS: Final[dict[str, str]] = {
    "clear_labels": "keys of labels to remove",
    "clear_name": "take the name away",
    "command": "a string is run by /bin/sh -c, a list of arguments as it is",
    "cursor": "where to begin, in bytes of output: 0, or next_cursor of the page before",
    "cwd": "working directory",
    "detach": "return once the command runs; exec_wait, exec_read and exec_cancel then take its exec_id. No stdin",
    "env": "environment variables to set, besides the usual ones",
    "environment": "what the machine starts from, such as debian:12",
    "exec_id": "the command, as workspace_exec and workspace_logs name it",
    "idle_stop_seconds": "stop the workspace, keeping its disk, after this long without any activity",
    "idempotency_key": "your name for this command: asked for again with the same key it is not run twice, but its "
    "result returned",
    "labels": "for your own use, up to 256 characters each",
    "limit": "at most this many commands, the newest",
    "max_bytes": "size of a page, in bytes of output",
    "max_output_chars": "characters of stdout, and of stderr, to return; of longer output head and tail are kept",
    "mem_mib": "memory in MiB",
    "name": "a unique name, to be used instead of the id",
    "stdin": "text for the command's standard input, which is empty otherwise",
    "timeout_seconds": "kill the command and its children after this time; exit code 124",
    "ttl_seconds": "delete the workspace, with its disk, after this time; not at all by default",
    "user": "user in the workspace, a name or uid[:gid]",
    "vcpu_count": "virtual CPUs",
    "wait_seconds": "how long to wait at most",
    "workspace": "the workspace's name or id",
}

_WORKSPACES: Final = """\
pyro gives you workspaces: disposable Linux microVMs, isolated from the host. You are root in them; a workspace keeps
its files and background processes between calls until it is deleted. The usual way: workspace_create, workspace_exec
as often as needed, workspace_delete. Workspaces have no network. A command that fails is a normal result with its exit
code; an error result says what to do next."""

_ONE_COMMAND: Final = """\
pyro runs commands in disposable Linux microVMs, isolated from the host and without network. Nothing is kept between
calls. A command that fails is a normal result with its exit code; an error result says what to do next."""

DEFAULT_PROFILE: Final = "workspace-core"
PROFILES: Final[dict[str, Profile]] = {
    "vm-run": Profile(frozenset({"vm_run"}), _ONE_COMMAND),
    "workspace-core": Profile(
        frozenset(
            {
                "workspace_create",
                "workspace_list",
                "workspace_status",
                "workspace_exec",
                "exec_read",
                "workspace_delete",
            }
        ),
        _WORKSPACES,
    ),
    "workspace-full": Profile(frozenset(GUIDES), _WORKSPACES),
}
