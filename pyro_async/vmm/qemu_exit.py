"""Why a QEMU ended, told from what it left behind."""

from __future__ import annotations

import re
import signal

from pyro_async.errors import DriverUnavailable, HostDiskFull, PyroError, WorkspaceFailed
from pyro_async.vmm.driver import MachineExit
from pyro_async.vmm.qemu_arguments import Accelerator

__all__ = ["error_line", "explain_exit", "start_failure"]

_MAX_REASON = 300
_PROGRAM = re.compile(r"^\S*qemu-system-\w+: ")
_JSON_OPTION = re.compile(r"^-\w+ \{.*?\}: ")


def explain_exit(
    *, returncode: int | None, verdict: str | None, shutdown_reason: str | None, console: str, stderr: str
) -> MachineExit:
    """How a VM ended.

    Args:
        returncode: exit status, negative signal number, or None if that is not known.
        verdict: why this program ended the VM, if it did.
        shutdown_reason: the reason in QMP's SHUTDOWN event, if there was one.
        console: end of the guest's console, printable.
        stderr: what QEMU wrote to stderr.
    """
    match shutdown_reason:
        case _ if verdict is not None:
            reason = verdict
        case None:
            reason = _describe_return(returncode, stderr)
        case "guest-shutdown":
            reason = "powered off"
        case "guest-reset":
            # The kernel is told to reset on a panic; only its last words tell that from a reboot.
            panics = re.findall(r"Kernel panic - [^\n]*", console)
            reason = f"guest panicked: {panics[-1]}" if panics else "guest rebooted"
        case "host-qmp-quit":
            reason = "ended by the host"
        case "host-signal":
            reason = "terminated by a signal"
        case other:
            reason = f"QEMU shut down: {other}"
    return MachineExit(returncode=returncode, reason=reason[:_MAX_REASON], clean=reason == "powered off")


def start_failure(accelerator: Accelerator, returncode: int | None, stderr: str) -> PyroError:
    """The error for a QEMU that ended before its guest ran, with QEMU's own message."""
    reason = f"QEMU did not start: {error_line(stderr) or _describe_return(returncode, stderr)}"
    if "No space left on device" in reason:
        return HostDiskFull(reason, hint="free space on the host")
    if accelerator == "kvm" and "kvm" in reason.lower():
        return DriverUnavailable(reason, hint="load KVM and allow this user to open /dev/kvm")
    return WorkspaceFailed(reason)


def error_line(stderr: str) -> str:
    """QEMU's last error that is not a warning (else its last line), with its hint; empty if there is none."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if ": warning: " not in line] or lines
    errors = [index for index, line in enumerate(lines) if _PROGRAM.match(line)]
    # Hints follow their error on lines of their own, without the program's name.
    message = " ".join(lines[errors[-1] :] if errors else lines[-1:])
    return _JSON_OPTION.sub("", _PROGRAM.sub("", message))


def _describe_return(returncode: int | None, stderr: str) -> str:
    if returncode is None:
        return "QEMU ended without a word: killed or crashed"
    if returncode < 0:
        return f"killed by signal {-returncode} ({signal.strsignal(-returncode)})"
    return f"QEMU failed with status {returncode}: {error_line(stderr) or 'no message'}"
