"""The ``qemu`` driver: microvm machines under KVM or TCG."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from anyio import to_thread

from pyro_async.errors import DriverUnavailable, HostDiskFull, WorkspaceFailed
from pyro_async.faults import fault_point
from pyro_async.vmm.channels import Channel, VirtioSerialChannel
from pyro_async.vmm.driver import Machine, MachineSpec
from pyro_async.vmm.process import Process, ProcessIdentity
from pyro_async.vmm.qemu_arguments import CONSOLE_SOCKET, QMP_SOCKET, Accelerator, qemu_arguments
from pyro_async.vmm.qemu_machine import QemuMachine
from pyro_async.vmm.sockets import remove_stale
from pyro_async.vmm.tsc import host_tsc_khz

__all__ = ["QemuDriver"]

_STDERR = "qemu.stderr"


class QemuDriver:
    """Runs machines with QEMU.

    Args:
        accelerator: ``kvm`` or ``tcg``.
        binary: name on PATH or path of ``qemu-system-x86_64``.
        channel: makes the guest channel of a VM from the VM's directory.
    """

    name = "qemu"

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        binary: str | Path = "qemu-system-x86_64",
        channel: Callable[[Path], Channel] = VirtioSerialChannel,
    ) -> None:
        self._accelerator: Accelerator = accelerator
        self._binary = binary
        self._channel = channel

    @property
    def acceleration(self) -> str:
        return self._accelerator

    @property
    def binary(self) -> Path:
        """Where QEMU is; raises :class:`~pyro_async.errors.DriverUnavailable` if it is not installed."""
        found = shutil.which(self._binary)
        if found is None:
            raise DriverUnavailable(f"{self._binary} is not installed", hint="run `pyro setup`")
        return Path(found).absolute()

    @asynccontextmanager
    async def start(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        if self._accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise DriverUnavailable("this user cannot open /dev/kvm", hint="load KVM and join the group that owns it")
        channel = self._channel(spec.directory)
        arguments = qemu_arguments(
            spec,
            self._accelerator,
            channel_arguments=channel.qemu_arguments,
            channel_kernel_arguments=channel.kernel_arguments,
            shared_memory=channel.shared_memory,
            tsc_khz=await to_thread.run_sync(host_tsc_khz) if self._accelerator == "tcg" else None,
        )
        with _host_failures(spec.directory):
            remove_stale(spec.directory, QMP_SOCKET, CONSOLE_SOCKET)
            await channel.start()
        try:
            with _host_failures(spec.directory):
                process = await Process.spawn([str(self.binary), *arguments], cwd=spec.directory, stderr=_STDERR)
        except BaseException:
            await channel.stop()
            raise
        fault_point("machine.spawned")
        machine = QemuMachine(spec, process, channel, self._accelerator)
        async with machine.attended(adopted=False):
            yield machine

    @asynccontextmanager
    async def adopt(self, spec: MachineSpec, identity: ProcessIdentity) -> AsyncIterator[Machine]:
        channel = self._channel(spec.directory)
        try:
            channel.adopt()
        except ProcessLookupError as error:
            channel_lost: ProcessLookupError | None = error
        else:
            channel_lost = None
        try:
            process = Process.adopt(identity, cwd=spec.directory, stderr=_STDERR)
        except (ProcessLookupError, FileNotFoundError) as error:
            await channel.stop()
            raise WorkspaceFailed(f"the VM's process {identity.pid} is gone") from error
        if channel_lost is not None:
            # The VM runs, but nothing reaches its agent any more, nor will.
            process.kill()
            await process.wait()
            process.close()
            raise WorkspaceFailed(f"the VM lost its channel: {channel_lost}")
        machine = QemuMachine(spec, process, channel, self._accelerator)
        async with machine.attended(adopted=True):
            yield machine


@contextmanager
def _host_failures(directory: Path) -> Iterator[None]:
    """Turns what the host's file system and kernel refuse into the errors that :class:`Driver` documents."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostDiskFull(f"no space left for the VM in {directory}", hint="free space on the host") from error
        raise WorkspaceFailed(f"cannot start QEMU: {error}") from error
