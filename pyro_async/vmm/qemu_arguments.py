"""QEMU's command line as a pure function of a machine's specification.

Paths of images are absolute; sockets and logs are relative to the VM's directory, QEMU's working directory, so that
the length of that directory's path never matters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pyro_async.vmm.driver import MachineSpec

__all__ = ["CONSOLE_SOCKET", "QMP_SOCKET", "Accelerator", "qemu_arguments"]

Accelerator = Literal["kvm", "tcg"]

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"

TRANSLATION_CACHE_MIB = 128
"""TCG's cache of translated code; left alone it grows up to 1 GiB for each VM."""

_MACHINE = (
    "microvm,x-option-roms=off,rtc=on,pcie=off,isa-serial=on,"
    # Without pic and pit the guest wedges under TCG.
    "pic=on,pit=on,"
    # `memory` is the same block in every VM, whatever backs it: a template's device state finds it by this name.
    "memory-backend=memory,dump-guest-core=off"
)

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_TCG_CPU = "max,la57=off,erms=off,fsrm=off"
"""Everything TCG has, but for longer page tables, which slow it down, and for fast string moves, which it says it has
and executes byte by byte: without them the guest's kernel copies memory several times faster."""

_KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "8250.nr_uarts=1",
    "quiet",
    "loglevel=1",
    # Triple fault and no reboot: a panic ends the VMM at once.
    "reboot=t",
    "panic=-1",
    "tsc=reliable",
    "no_timer_check",
    "cryptomgr.notests",
    "random.trust_cpu=on",
    "rcupdate.rcu_expedited=1",
    "mitigations=off",
)


def qemu_arguments(
    spec: MachineSpec,
    accelerator: Accelerator,
    *,
    channel_arguments: Sequence[str],
    channel_kernel_arguments: Sequence[str],
    shared_memory: bool,
    tsc_khz: int | None,
) -> list[str]:
    """All arguments after the binary's name. QEMU waits for a client of the console's socket, then runs the guest.

    Args:
        spec: the machine.
        accelerator: ``kvm`` or ``tcg``.
        channel_arguments: the device of the guest's channel.
        channel_kernel_arguments: what tells the agent about it.
        shared_memory: makes guest memory a file that another process can map, which a vhost-user device needs.
        tsc_khz: frequency of the guest's time-stamp counter, if the guest has to be told.
    """
    acceleration = f"tcg,tb-size={TRANSLATION_CACHE_MIB}" if accelerator == "tcg" else "kvm"
    memory: dict[str, object] = {"id": "memory", "size": spec.mem_mib << 20}
    if shared_memory:
        memory |= {"qom-type": "memory-backend-memfd", "share": True}
    else:
        memory |= {"qom-type": "memory-backend-ram"}
    clock = (f"tsc_early_khz={tsc_khz}",) if tsc_khz is not None else ()
    append = (*_KERNEL_ARGUMENTS, *clock, *channel_kernel_arguments, *spec.kernel_arguments)
    return [
        *("-no-user-config", "-nodefaults", "-display", "none", "-sandbox", _SANDBOX),
        "-no-reboot",
        *("-accel", acceleration, "-machine", _MACHINE),
        *("-cpu", _TCG_CPU if accelerator == "tcg" else "host"),
        *("-smp", str(spec.vcpu_count), "-m", f"{spec.mem_mib}M", "-object", json.dumps(memory)),
        *("-kernel", str(spec.kernel.absolute()), "-initrd", str(spec.initramfs.absolute())),
        *("-append", " ".join(append)),
        *("-global", "virtio-mmio.force-legacy=false"),
        # QEMU waits for this client, so that nothing the guest prints is lost.
        *("-chardev", f"socket,id=console,path={CONSOLE_SOCKET},server=on,wait=on", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,path={QMP_SOCKET},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        # The guest sees devices in this order.
        *_disk("base", spec.base, read_only=True),
        *_disk("tools", spec.tools, read_only=True),
        *_disk("upper", spec.upper, read_only=False),
        *channel_arguments,
    ]


def _disk(name: str, path: Path, *, read_only: bool) -> list[str]:
    # Locked by QEMU: any number of VMs share a read-only image, nobody writes to it meanwhile, and one VM alone holds
    # an upper disk. The raw format is named, since probing would let a guest plant another format's header.
    backend = {
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        "discard": "unmap",
        "file": {
            "driver": "file",
            "filename": str(path.absolute()),
            "locking": "on",
            "discard": "unmap",
        },
    }
    # A failing write pauses the VM, so that a full host disk costs time and not data; nothing good comes from a pause
    # for a failing read.
    device = {
        "driver": "virtio-blk-device",
        "drive": name,
        "serial": f"pyro-{name}",
        "werror": "report" if read_only else "stop",
        "rerror": "report",
    }
    return ["-blockdev", json.dumps(backend), "-device", json.dumps(device)]
