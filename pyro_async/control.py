"""Requests about the daemon itself, which are no operations on workspaces."""

from __future__ import annotations

import re
import socket
import struct
from typing import Final, NamedTuple

import msgspec
from anyio.abc import SocketAttribute, SocketStream

__all__ = ["STATUS", "STOP", "TASKS", "Credentials", "DaemonStatus", "StopDaemon", "is_older", "peer_credentials"]

STATUS: Final = "daemon_status"
#: Answered by a :class:`~pyro_async.task_tree.TaskNode`.
TASKS: Final = "daemon_tasks"
STOP: Final = "daemon_stop"


def is_older(version: str, than: str) -> bool:
    """Whether one release of pyro came before another, by the numbers that a version begins with.

    Versions that differ in what follows these, such as ``.dev1``, count as equal: neither replaces the other.
    """
    return _release(version) < _release(than)


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    release = [int(number) for number in numbers[0].split(".")] if numbers else []
    while release and release[-1] == 0:  # 1.2 is 1.2.0
        release.pop()
    return tuple(release)


class Credentials(NamedTuple):
    """Who is at the other end of a unix socket, by the kernel's word."""

    pid: int
    uid: int
    gid: int


def peer_credentials(stream: SocketStream) -> Credentials:
    """The credentials of a connected unix socket's peer (SO_PEERCRED)."""
    layout = struct.Struct("iII")
    raw = stream.extra(SocketAttribute.raw_socket)
    return Credentials(*layout.unpack(raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)))


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon that answers. ``started_at`` in seconds since the epoch, ``workspaces`` how many it owns."""

    pid: int
    version: str
    started_at: float
    workspaces: int


class StopDaemon(msgspec.Struct, frozen=True, kw_only=True):
    """Ends the daemon; with ``all`` its VMs are shut down cleanly, otherwise they run on for the next daemon."""

    all: bool = False
