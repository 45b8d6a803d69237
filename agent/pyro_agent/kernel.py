"""System calls that Python does not offer."""

from __future__ import annotations

import ctypes
import os

__all__ = [
    "MS_BIND",
    "MS_MOVE",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_RDONLY",
    "MS_REMOUNT",
    "mount",
    "reboot",
]

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192

# linux/reboot.h
_POWER_OFF = 0x4321FEDC
_AUTOBOOT = 0x01234567

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.reboot.argtypes = (ctypes.c_int,)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mounts, as mount(2). Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} ({kind or 'flags ' + hex(flags)}): {os.strerror(number)}", target)


def reboot() -> None:
    """Powers off; where the machine cannot, restarts, which ends a virtual machine too. Does not return on success."""
    _libc.reboot(_POWER_OFF)
    _libc.reboot(_AUTOBOOT)
