"""What every virtual machine monitor must offer the runtime.

A driver turns a :class:`MachineSpec` into a running virtual machine and a byte stream to the agent inside it. It knows
neither workspaces nor the wire protocol. The VMM process outlives the process that started it: :meth:`Driver.adopt`
takes over one that an earlier daemon left behind, found by its :class:`~pyro_async.vmm.process.ProcessIdentity`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec
from anyio.abc import ByteStream

from pyro_async.vmm.process import ProcessIdentity

__all__ = ["Driver", "Machine", "MachineExit", "MachineSpec", "Probe"]


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that determines one virtual machine.

    Attributes:
        directory: private working directory of this VM on the host; the driver puts its sockets and logs there. Exists.
        kernel: uncompressed ELF kernel.
        initramfs: the initramfs that mounts the tools image and hands PID 1 to the agent.
        tools: read-only ext4 image with the guest's own Python and the agent (block device serial ``pyro-tools``).
        base: read-only ext4 image of the environment (serial ``pyro-base``).
        upper: the workspace's writable ext4 image (serial ``pyro-upper``).
        vcpu_count: number of virtual CPUs, 1 to 8.
        mem_mib: memory in MiB.
        kernel_arguments: appended to the driver's own kernel command line.
    """

    directory: Path
    kernel: Path
    initramfs: Path
    tools: Path
    base: Path
    upper: Path
    vcpu_count: int = 1
    mem_mib: int = 512
    kernel_arguments: tuple[str, ...] = ()


class MachineExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a VMM process ended.

    Attributes:
        returncode: exit status of the VMM, negative signal number if a signal ended it, None if unknown because the
            process was adopted and so is not a child of this one.
        reason: one line for people: ``powered off``, ``killed by signal 9``, ``guest panicked``, ...
        clean: True if the guest itself powered off in good order.
    """

    returncode: int | None
    reason: str
    clean: bool


class Machine(Protocol):
    """One running virtual machine.

    ``identity`` finds its process again after this program was killed. All methods may be called from several tasks.
    """

    @property
    def identity(self) -> ProcessIdentity: ...

    @property
    def acceleration(self) -> str:
        """``kvm``, ``tcg`` or ``none``."""
        ...

    async def connect(self) -> ByteStream:
        """Opens a fresh byte stream to the guest's agent channel.

        A serial channel is connected at once: the agent may not be listening yet and bytes sent wait for it. A vsock
        channel is connected when the agent listens. A second call supersedes the first stream. Raises
        :class:`~pyro_async.errors.LinkLost` if the machine is gone, :class:`~pyro_async.errors.GuestUnresponsive` if
        nobody answers for a minute.
        """
        ...

    async def wait(self) -> MachineExit:
        """Waits until the VMM process has ended. Many tasks may wait; cancelling one changes nothing."""
        ...

    async def power_off(self, grace_seconds: float) -> MachineExit:
        """Ends the VM after its agent was asked to shut down: waits ``grace_seconds`` for the guest to power off, then
        asks the VMM to quit (bounded), then kills it; returns how it ended. Safe to call in a shielded scope."""
        ...

    async def kill(self) -> MachineExit:
        """Ends the VMM at once; returns how it ended."""
        ...

    @property
    def paused_for(self) -> str | None:
        """Why the VM stands still at the moment, such as a full host disk; it runs on by itself. None if it runs."""
        ...

    def console_tail(self, max_bytes: int = 8192) -> str:
        """The last output of the guest's console, control characters removed. Does not block."""
        ...

    def leave_running(self) -> None:
        """From now on leaving the context that made this machine releases it instead of ending the VMM."""
        ...


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Result of booting a probe VM: does this driver really run a guest with this accelerator on this host?

    Attributes:
        driver: ``qemu`` or ``firecracker``.
        acceleration: ``kvm`` or ``tcg``.
        works: a guest ran to its end within the deadline.
        detail: one line: version and boot time, or what went wrong.
        seconds: how long the probe took.
    """

    driver: str
    acceleration: str
    works: bool
    detail: str
    seconds: float


class Driver(Protocol):
    """A kind of virtual machine monitor."""

    @property
    def name(self) -> str: ...

    @property
    def acceleration(self) -> str:
        """``kvm`` or ``tcg``: with what its machines run."""
        ...

    @property
    def binary(self) -> Path:
        """The VMM's executable; raises :class:`~pyro_async.errors.DriverUnavailable` if it is not installed."""
        ...

    def start(self, spec: MachineSpec) -> AbstractAsyncContextManager[Machine]:
        """Starts a VM; entering returns once the VMM runs. Leaving kills it, unless it ended or was left running.

        Entering raises :class:`~pyro_async.errors.DriverUnavailable` or :class:`~pyro_async.errors.WorkspaceFailed`.
        """
        ...

    def adopt(self, spec: MachineSpec, identity: ProcessIdentity) -> AbstractAsyncContextManager[Machine]:
        """Takes over a running VMM that an earlier process started with ``spec``; same rules on leaving.

        Entering raises :class:`~pyro_async.errors.WorkspaceFailed` if that process is gone or another has its pid.
        """
        ...
