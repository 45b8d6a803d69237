"""The guest's root: an overlay of the environment's disk and the workspace's own."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from pyro_agent.kernel import MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT, mount
from pyro_async.errors import WorkspaceFailed

__all__ = ["UPPER", "enter_root", "mount_cgroups", "seal"]

_BASE: Final = "/run/pyro/base"
#: Where the workspace's disk is mounted, before and after the root is entered.
UPPER: Final = "/run/pyro/upper"
#: Not below /run, which moves into it.
_ROOT: Final = "/newroot"
_BLKFLSBUF: Final = 0x1261  # linux/fs.h

#: A rename of a directory and a chmod copy up whole files: then the upper layer alone says what changed.
_OVERLAY_OPTIONS: Final = "redirect_dir=off,metacopy=off,index=off"


def enter_root() -> None:
    """Mounts both disks and their overlay, takes the kernel's file systems along, and makes it this process's root.

    Nothing is written to the workspace's disk but its two directories, and mount points the environment lacks.

    Raises:
        WorkspaceFailed: a disk is missing or cannot be mounted.
    """
    try:
        for directory in (_BASE, UPPER, _ROOT):
            os.makedirs(directory, exist_ok=True)
        mount(_find_disk("pyro-base"), _BASE, "ext4", MS_RDONLY)
        upper = _find_disk("pyro-upper")
        _drop_cache(upper)
        # Its tables are zero already, being sparse: the kernel must not write them out in the background.
        mount(upper, UPPER, "ext4", options="noinit_itable")
        for directory in ("upper", "work"):
            os.makedirs(f"{UPPER}/{directory}", exist_ok=True)
        layers = f"lowerdir={_BASE},upperdir={UPPER}/upper,workdir={UPPER}/work"
        mount("overlay", _ROOT, "overlay", 0, f"{layers},{_OVERLAY_OPTIONS}")
        for name in ("proc", "sys", "dev", "run", "tmp"):
            _provide(f"{_ROOT}/{name}")
        for name in ("proc", "sys", "dev", "run"):
            mount(f"/{name}", f"{_ROOT}/{name}", flags=MS_MOVE)
        os.chdir(_ROOT)
        mount(".", "/", flags=MS_MOVE)
        os.chroot(".")
        os.chdir("/")
        _mount_runtime()
    except OSError as error:
        raise WorkspaceFailed(f"the guest cannot mount its root: {error}") from error


def _find_disk(serial: str) -> str:
    """Disks are told apart by serial number: letters depend on the order of discovery."""
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/serial") as file:
                if file.read().strip() == serial:
                    return f"/dev/{name}"
        except OSError:
            continue
    raise FileNotFoundError(f"no disk has the serial number {serial}")


def _drop_cache(device: str) -> None:
    """Forgets what was read of a disk that may have been exchanged while the machine was frozen."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    finally:
        os.close(fd)


def _provide(directory: str) -> None:
    if not os.path.isdir(directory):
        os.mkdir(directory)


def _mount_runtime() -> None:
    """What lives in memory and so never reaches a disk."""
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for directory in ("/dev/pts", "/dev/shm"):
        _provide(directory)
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666")
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    links = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))
    for name, target in links:
        os.symlink(target, f"/dev/{name}")


def mount_cgroups(path: str) -> None:
    """Mounts the unified hierarchy with its memory controller."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    try:
        # Moving a process, which every command's start does twice, then waits for no RCU grace period.
        mount("cgroup2", path, "cgroup2", flags, "favordynmods")
    except OSError:
        mount("cgroup2", path, "cgroup2", flags)  # a kernel before 6.0


def seal() -> None:
    """Writes everything and makes the workspace's disk read-only, which marks its filesystem clean."""
    os.sync()
    try:
        mount("", UPPER, "", MS_REMOUNT | MS_RDONLY)
    except OSError:
        # Something still holds a file open for writing: the kernel's emergency path asks nobody. It is asynchronous;
        # the journal-less ext4 is consistent after the sync above in any case.
        with open("/proc/sysrq-trigger", "w") as trigger:
            trigger.write("u")
        os.sync()
