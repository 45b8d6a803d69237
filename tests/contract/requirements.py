"""What pyro promises, as data: every requirement is cited by a test, every citation names a requirement."""

from __future__ import annotations

from typing import Final

import pytest

__all__ = ["REQUIREMENTS", "requirement"]

REQUIREMENTS: Final = {
    "exec-argv": "A list is run as it is, without a shell.",
    "exec-string": "A string is run by /bin/sh -c.",
    "exec-status": "The exit status of a command is its own; 128 + n if signal n ended it.",
    "exec-not-found": "A command that does not exist ends with 127, one that may not be executed with 126.",
    "exec-cwd": "A command runs in /workspace, or in the directory it is given; one that is missing is refused.",
    "exec-env": "Variables are added to a default environment that has PATH and HOME; none of the host's reaches it.",
    "exec-user": "A command can be run as another user, by name or by number; an unknown one is refused.",
    "exec-streams": "stdout and stderr are kept apart, each in order.",
    "exec-events": "Output is passed on as it is produced; the last event is the result.",
    "exec-binary": "Output that is not UTF-8 is streamed byte by byte and decoded with U+FFFD in results.",
    "exec-text": "A NUL byte or text that is not Unicode in a command, its cwd or its environment is refused.",
    "exec-long-argv": "Arguments of up to 2 MB work; more are refused with a hint.",
    "exec-large-output": "Any amount of output arrives whole and in order, however slowly read, in bounded memory.",
    "exec-inline-output": "A result holds at most 1 MiB of each output, head and tail, and says so.",
    "exec-stdin": "Standard input of any size arrives whole; its end ends a reader; without it stdin is empty.",
    "exec-unread-stdin": "A command that does not read its input still ends.",
    "exec-concurrent": "A hundred commands run at once beside a long one and disturb nobody.",
    "exec-timeout": "A timeout gives 124, timed_out, the partial output, and no surviving process.",
    "exec-cancel-scope": "Cancelling the caller's scope kills the whole process tree before the cancellation goes on.",
    "exec-leave-stream": "Leaving a stream of events early kills the command.",
    "exec-cancel-by-id": "cancel_exec kills a command of any client and returns its result.",
    "exec-disconnect": "A client that vanishes takes its commands with it.",
    "exec-background": "What a command leaves in the background runs on after its end.",
    "exec-history": "Commands are numbered and kept with their output, oldest first.",
    "workspace-name": "Names are unique, 1 to 64 of A-Z a-z 0-9 . _ -; a workspace is found by id or name.",
    "workspace-labels": "Labels are set, changed and cleared one by one.",
    "workspace-list": "Workspaces are listed oldest first.",
    "workspace-limits": "vCPUs, memory and other bounds are checked, and the message names the field.",
    "workspace-not-found": "What does not exist is told as such.",
    "workspace-stop-start": "Stopping and starting keeps the disk's files and ends everything that runs.",
    "workspace-delete": "Deleting removes everything; the name is free again.",
    "workspace-environment": "An unknown environment is refused with the known ones named.",
    "run-in-vm": "run_in_vm runs one command in a workspace of its own and leaves nothing, whatever happens.",
    "progress": "Longer operations report what they are doing.",
    "guest-identity": "A guest has a host name, clock, machine-id, /dev/pts, and memory file systems on /tmp and /run.",
    "guest-init": "The agent reaps every orphan.",
    "guest-oom": "A command that ran out of memory says cause oom.",
    "guest-enospc": "A command that failed because the disk is full says cause enospc.",
    "guest-panic": "A guest that panics is failed, with the end of its console.",
    "guest-killed": "A VMM that is killed fails its workspace and no other.",
    "guest-clean-disk": "Stopping leaves a clean file system.",
    "guest-fresh-disk": "A fresh workspace has changed nothing.",
    "guest-busybox": "An environment needs neither Python nor glibc.",
    "daemon-killed": "After kill -9 of the daemon the next one has the same workspaces and their running commands.",
}


def requirement(*names: str) -> pytest.MarkDecorator:
    """Cites requirements: what the test shows."""
    return pytest.mark.requirement(*names)
