"""Requests about the daemon itself, which are no operations on workspaces."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["STATUS", "STOP", "DaemonStatus", "StopDaemon"]

STATUS: Final = "daemon_status"
STOP: Final = "daemon_stop"


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon that answers. ``started_at`` in seconds since the epoch, ``workspaces`` how many it owns."""

    pid: int
    version: str
    started_at: float
    workspaces: int


class StopDaemon(msgspec.Struct, frozen=True, kw_only=True):
    """Ends the daemon; with ``all`` its VMs are shut down cleanly, otherwise they run on for the next daemon."""

    all: bool = False
