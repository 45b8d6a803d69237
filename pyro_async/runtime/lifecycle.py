"""The states of a workspace and every legal transition between them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from pyro_async.errors import WrongState

__all__ = ["Phase", "check_transition", "event_kind", "public_state"]


class Phase(StrEnum):
    """Where a workspace is in its life, as recorded before anything is done about it."""

    CREATING = "creating"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETING = "deleting"


_TRANSITIONS: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.CREATING: frozenset({Phase.STARTED}),  # or it is undone
    Phase.STARTING: frozenset({Phase.STARTED, Phase.FAILED, Phase.STOPPED, Phase.DELETING}),
    Phase.STARTED: frozenset({Phase.STOPPING, Phase.STOPPED, Phase.FAILED, Phase.DELETING}),
    Phase.STOPPING: frozenset({Phase.STOPPED, Phase.FAILED, Phase.DELETING}),
    Phase.STOPPED: frozenset({Phase.STARTING, Phase.DELETING}),
    Phase.FAILED: frozenset({Phase.STARTING, Phase.DELETING}),
    Phase.DELETING: frozenset(),
}

_PUBLIC: Final[dict[Phase, Literal["created", "started", "stopped", "failed"]]] = {
    Phase.CREATING: "created",
    Phase.STARTING: "created",
    Phase.STARTED: "started",
    Phase.STOPPING: "started",
    Phase.STOPPED: "stopped",
    Phase.FAILED: "failed",
    Phase.DELETING: "stopped",
}

#: The phases that last; a transition under way is told of when it is over.
_EVENT_KINDS: Final = {
    Phase.STARTED: "workspace.started",
    Phase.STOPPED: "workspace.stopped",
    Phase.FAILED: "workspace.failed",
}


def event_kind(phase: Phase) -> str | None:
    """The kind of the event that tells of entering a phase, if one does."""
    return _EVENT_KINDS.get(phase)


def check_transition(workspace: str, current: Phase, target: Phase) -> None:
    """Raises WrongState unless ``current`` may become ``target``."""
    if target in _TRANSITIONS[current]:
        return
    hint = "start it first" if current in (Phase.STOPPED, Phase.FAILED) else "wait until that is done"
    raise WrongState(f"workspace {workspace} is {current}", hint=hint)


def public_state(phase: Phase) -> Literal["created", "started", "stopped", "failed"]:
    """The state a user sees."""
    return _PUBLIC[phase]
