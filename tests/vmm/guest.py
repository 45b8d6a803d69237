"""A tiny guest for tests of the VMM layer: a busybox shell that reads its commands from the agent's channel."""

from __future__ import annotations

import struct
from pathlib import Path

from pyro_async.images.cpio import Archive
from pyro_async.vmm.channels import AGENT_PORT
from pyro_async.vmm.probe_guest import CODE_ADDRESS, static_executable

# Each module after what it needs.
_MODULES = (
    *("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_console"),
    *("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"),
)

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module.ko; done
echo guest is up
case "$(cat /proc/cmdline)" in
*pyro.channel=vsock*) while :; do /serve-vsock; done ;;
*) exec 3<> /dev/vport0p1  # kept open: the last close discards what has arrived
   while :; do sh <&3 >&3 2>&1; usleep 10000; done ;;
esac
"""


def build_test_initramfs(modules: Path, busybox: Path) -> bytes:
    """An initramfs with busybox and the drivers of both channels from the directory ``modules``."""
    archive = Archive()
    for path in ("bin", "dev", "modules", "proc", "sys"):
        archive.directory(path)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.file("init", _INIT.format(modules=" ".join(_MODULES)).encode(), 0o755)
    archive.file("serve-vsock", static_executable(_serve_vsock()), 0o755)
    for name in _MODULES:
        archive.file(f"modules/{name}.ko", (modules / f"{name}.ko").read_bytes())
    return archive.getvalue()


_SAVED = object()
"""The result that the last ``_KEEP`` put into r12."""
_KEEP = b"\x49\x89\xc4"  # mov r12, rax
_REGISTERS = ((b"\x48\xbf", b"\x4c\x89\xe7"), (b"\x48\xbe", b"\x4c\x89\xe6"), (b"\x48\xba", b"\x4c\x89\xe2"))
"""For rdi, rsi and rdx: the instructions that load a 64-bit constant, and that load r12."""


def _system_call(number: int, *arguments: object) -> bytes:
    code = b""
    for (load_constant, load_saved), argument in zip(_REGISTERS, arguments, strict=False):
        code += load_saved if argument is _SAVED else load_constant + struct.pack("<Q", argument)
    return code + b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"


def _serve_vsock() -> bytes:
    """Accepts one connection on the agent's port and becomes a shell on it; busybox itself knows no AF_VSOCK."""
    jump = b"\xeb\x28"  # over the data
    address = CODE_ADDRESS + len(jump)
    any_cid = 0xFFFFFFFF
    program, argument = address + 16, address + 16 + 8
    data = struct.pack("<HHIII", 40, 0, AGENT_PORT, any_cid, 0) + b"/bin/sh\0" + struct.pack("<QQ", program, 0)
    assert len(data) == jump[1]
    leave = _system_call(60, 1)  # exit
    return b"".join(
        (
            jump,
            data,
            _system_call(41, 40, 1, 0),  # socket(AF_VSOCK, SOCK_STREAM, 0)
            _KEEP,
            _system_call(49, _SAVED, address, 16),  # bind
            _system_call(50, _SAVED, 1),  # listen
            _system_call(43, _SAVED, 0, 0),  # accept
            _KEEP,
            b"\x48\x85\xc0\x79" + bytes([len(leave)]),  # test rax, rax; jns over the exit
            leave,
            _system_call(
                3, 3
            ),  # close the listener, the first descriptor that was free: nobody may wait behind a shell
            *(_system_call(33, _SAVED, descriptor) for descriptor in range(3)),  # dup2
            _system_call(59, program, argument, 0),  # execve
            leave,
        )
    )
