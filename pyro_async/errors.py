"""Every failure pyro reports, as one tree with stable codes.

A code is part of the public contract: it crosses the wire, appears in ``--json`` output and never changes its meaning.
The message says what happened to what; the hint says what to do about it. Only standard library and msgspec here: the
guest imports this module.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

__all__ = [
    "Conflict",
    "DaemonUnavailable",
    "DriverUnavailable",
    "EnvironmentBuildFailed",
    "EnvironmentNotFound",
    "ExecNotFound",
    "Failure",
    "GuestUnresponsive",
    "HomeBusy",
    "HomeUnusable",
    "HostDiskFull",
    "HostMemoryFull",
    "InternalError",
    "InvalidArgument",
    "LinkLost",
    "ProtocolError",
    "PyroError",
    "SetupRequired",
    "UnknownOperation",
    "VersionMismatch",
    "WorkspaceFailed",
    "WorkspaceNotFound",
    "WrongState",
    "error_from_failure",
]


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """A :class:`PyroError` as it crosses a wire."""

    code: str
    message: str
    hint: str = ""


class PyroError(Exception):
    """Base of all errors a caller of pyro can meet.

    Attributes:
        code: stable machine-readable name of the kind of failure.
        message: what happened, naming the thing it happened to.
        hint: what the caller can do about it; empty where nothing can be done.
        exit_status: the exit status of a CLI command that ends with this error.
    """

    code: ClassVar[str] = "internal_error"
    exit_status: ClassVar[int] = 125

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def to_failure(self) -> Failure:
        """Returns the form that crosses a wire; :func:`error_from_failure` is the inverse."""
        return Failure(self.code, self.message, self.hint)


class InternalError(PyroError):
    """A defect in pyro itself, or an error code this version does not know."""


class InvalidArgument(PyroError):
    """A parameter is malformed, out of range, or names something that cannot be."""

    code = "invalid_argument"
    exit_status = 2


class UnknownOperation(PyroError):
    """The requested operation does not exist in this version."""

    code = "unknown_operation"


class WorkspaceNotFound(PyroError):
    """No workspace has this id or name."""

    code = "workspace_not_found"


class EnvironmentNotFound(PyroError):
    """No environment of this name is known or can be built."""

    code = "environment_not_found"


class EnvironmentBuildFailed(PyroError):
    """An environment, the kernel or the tools image could not be built."""

    code = "environment_build_failed"


class ExecNotFound(PyroError):
    """The workspace has no command of this id."""

    code = "exec_not_found"


class Conflict(PyroError):
    """The name is taken, or another operation on the same thing is under way."""

    code = "conflict"


class WrongState(PyroError):
    """The workspace is in a state that does not allow this operation."""

    code = "wrong_state"


class WorkspaceFailed(PyroError):
    """The workspace's VM is gone; the message carries the cause and the end of its console."""

    code = "workspace_failed"


class GuestUnresponsive(PyroError):
    """The guest's agent did not answer in time."""

    code = "guest_unresponsive"


class LinkLost(PyroError):
    """The connection to the guest or to the daemon ended while an operation was under way."""

    code = "link_lost"


class ProtocolError(PyroError):
    """The other end of a connection broke the wire protocol."""

    code = "protocol_error"


class VersionMismatch(PyroError):
    """Client, daemon or guest agent speak different protocol versions."""

    code = "version_mismatch"


class HostDiskFull(PyroError):
    """The host has no space left for what the operation has to write."""

    code = "host_disk_full"


class HostMemoryFull(PyroError):
    """The VMs that run leave too little of the host's memory for another; the hint names what to stop."""

    code = "host_memory_full"


class HomeUnusable(PyroError):
    """The home directory cannot be used: not writable, not a directory, or its path too long for a unix socket."""

    code = "home_unusable"


class HomeBusy(PyroError):
    """Another process owns the home directory."""

    code = "home_busy"


class SetupRequired(PyroError):
    """The host lacks something that ``pyro setup`` installs."""

    code = "setup_required"


class DriverUnavailable(PyroError):
    """No driver and accelerator of this host can run a guest."""

    code = "driver_unavailable"


class DaemonUnavailable(PyroError):
    """The daemon could not be started or does not answer."""

    code = "daemon_unavailable"


_BY_CODE: dict[str, type[PyroError]] = {cls.code: cls for cls in PyroError.__subclasses__() if cls is not InternalError}


def error_from_failure(failure: Failure) -> PyroError:
    """Rebuilds the typed error that :meth:`PyroError.to_failure` flattened; an unknown code becomes InternalError."""
    cls = _BY_CODE.get(failure.code)
    if cls is None:
        text = failure.message if failure.code == InternalError.code else f"{failure.code}: {failure.message}"
        return InternalError(text, hint=failure.hint)
    return cls(failure.message, hint=failure.hint)
