"""The initramfs: loads the drivers, mounts the tools image and hands PID 1 to the agent in it.

It is on the path of every cold boot, and under TCG each process it starts costs ten milliseconds or more: so it mounts
everything with one process, loads all modules with one, and does the rest in the shell itself.
"""

from __future__ import annotations

from pathlib import Path

from pyro_async.images.cpio import Archive
from pyro_async.images.tools import AGENT_COMMAND, TOOLS_PATH

__all__ = ["build_initramfs"]

_MODULES = ("virtio_mmio", "virtio_blk", "virtio_rng", "overlay")
_SERIAL_MODULE = "virtio_console"
_VSOCK_MODULE = "vmw_vsock_virtio_transport"

_FSTAB = """\
proc /proc proc nosuid,nodev,noexec 0 0
sysfs /sys sysfs nosuid,nodev,noexec 0 0
devtmpfs /dev devtmpfs nosuid,mode=0755 0 0
tmpfs /run tmpfs nosuid,nodev,mode=0755 0 0
"""

# Devices are probed while their driver loads, but nothing promises it: hence the patient look for the disk.
_INIT = """\
#!/bin/busybox sh
fail() {{
    echo "pyro: init: $*" > /dev/console
    /bin/busybox poweroff -f
    /bin/busybox reboot -f
}}

find_tools() {{
    for serial in /sys/block/vd*/serial; do
        id=
        read -r id < "$serial"
        [ "$id" = pyro-tools ] && disk=${{serial%/serial}} && disk=/dev/${{disk##*/}} && return
    done 2> /dev/null
    false
}}

/bin/busybox mount -a || fail "cannot mount /proc, /sys, /dev and /run"
read -r arguments < /proc/cmdline
case " $arguments " in
*" pyro.channel=vsock "*) modules="{vsock_modules}" ;;
*) modules="{serial_modules}" ;;
esac
/bin/busybox modprobe -a $modules || fail "cannot load the kernel modules"
tries=0
until find_tools; do
    [ "$((tries += 1))" -le 50 ] || fail "there is no disk with the serial number pyro-tools"
    /bin/busybox usleep 20000
done
/bin/busybox mkdir -p {tools} &&
    /bin/busybox mount -t ext4 -o ro "$disk" {tools} || fail "cannot mount the tools image from $disk"
[ -x {python} ] || fail "the tools image on $disk holds no Python"
exec {agent}
"""


def build_initramfs(kernel: Path, busybox: Path) -> bytes:
    """Returns an initramfs for a kernel artifact. ``busybox`` is a static busybox. Blocks for some milliseconds."""
    release = (kernel / "release").read_text().strip()
    table = (kernel / "modules" / "modules.dep").read_text()
    needs = {name: needed.split() for name, _, needed in (line.partition(".ko:") for line in table.splitlines())}
    # What is built into this kernel has no line in the table and must not be asked for.
    serial, vsock = (
        [name for name in (*_MODULES, channel) if name in needs] for channel in (_SERIAL_MODULE, _VSOCK_MODULE)
    )
    files = {file for name in (*serial, *vsock) for file in (f"{name}.ko", *needs[name])}
    init = _INIT.format(
        serial_modules=" ".join(serial),
        vsock_modules=" ".join(vsock),
        tools=TOOLS_PATH,
        python=AGENT_COMMAND[0],
        agent=" ".join(AGENT_COMMAND),
    )

    archive = Archive()
    for path in ("bin", "dev", "etc", "lib", "lib/modules", f"lib/modules/{release}", "proc", "run", "sys"):
        archive.directory(path)
    # The kernel opens it as init's standard streams before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.file("etc/fstab", _FSTAB.encode())
    archive.file("init", init.encode(), 0o755)
    archive.file(f"lib/modules/{release}/modules.dep", table.encode())
    for file in sorted(files):
        archive.file(f"lib/modules/{release}/{file}", (kernel / "modules" / file).read_bytes())
    return archive.getvalue()
