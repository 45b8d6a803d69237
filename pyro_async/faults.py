"""Named places at which a process can be made to die, so that tests can show what it leaves behind there.

With ``PYRO_FAULT=name`` in its environment a process kills itself when it comes by that place for the first time, with
``PYRO_FAULT=name:3`` for the third time; as kill -9 would, so nothing is cleaned up. There is one of them between any
two transactions of the store and on both sides of every effect outside of it. One that is not asked for costs a
comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

__all__ = ["POINTS", "fault_point"]

#: Every place, with what has happened there and what has not.
POINTS: Final = {
    "create.recorded": "the workspace is recorded, nothing else of it exists",
    "create.disk": "it has its disk and no machine",
    "machine.spawned": "the VMM's process runs, and only the operating system knows",
    "machine.started": "the VMM answers, and is not recorded yet",
    "machine.recorded": "the VMM is recorded, its agent not reached",
    "machine.configured": "the guest has its root, the workspace is not recorded as started",
    "machine.ready": "the workspace is recorded as started, nobody was told",
    "start.recorded": "a start is recorded, nothing done",
    "stop.recorded": "a stop is recorded, nothing done",
    "stop.ended": "the machine is off, the workspace not recorded as stopped",
    "stop.finished": "the workspace is recorded as stopped, nobody was told",
    "delete.recorded": "a deletion is recorded, nothing done",
    "delete.killed": "the machine is gone, the files are there",
    "delete.removed": "the files are gone, the record is there",
    "delete.finished": "the record is gone, nobody was told",
    "update.recorded": "a new name is recorded, nobody was told",
    "failure.recorded": "a machine's end is recorded",
    "exec.recorded": "a command is recorded, the agent does not know it",
    "exec.announced": "the agent has the command",
    "exec.stdin": "a piece of standard input was sent",
    "exec.received": "output has arrived and is not kept",
    "exec.kept": "output is kept, the agent not told",
    "exec.exited": "a command's end has arrived and is not recorded",
    "exec.finished": "a command's end is recorded, the agent not told",
    "exec.refused": "a command the guest refused is struck from the records",
    "exec.lost": "a command is recorded as lost",
    "cancel.asked": "a command is to be killed, the agent may not know it",
    "cancel.confirmed": "a command was killed, nobody was told",
    "environment.recorded": "the building of an environment is recorded",
    "clock.recorded": "a jump of the host's clock is recorded, no guest was told",
    "recover.begun": "the records an earlier process left are read, nothing done about them",
    "recover.reaped": "processes an earlier one left are gone, which is not recorded",
    "recover.greeted": "an adopted machine's agent was reached, its commands are not taken up",
    "recover.adopted": "an adoption is recorded",
    "recover.finished": "everything left is dealt with, no client served",
    "daemon.serving": "the socket answers, whoever started the daemon was not told",
    "daemon.released": "the machines were let go, the home was not",
}

_name, _, _count = os.environ.get("PYRO_FAULT", "").partition(":")
_visits_left = int(_count or 1)


def fault_point(name: str) -> None:
    """Dies here if the environment asks for it."""
    if name == _name:
        _visit()


def _visit() -> None:
    global _visits_left
    _visits_left -= 1
    if not _visits_left:
        os.kill(os.getpid(), signal.SIGKILL)
