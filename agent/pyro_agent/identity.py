"""What makes this guest itself and not a twin from the same template."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time

from pyro_agent.kernel import MS_BIND, mount

__all__ = ["add_entropy", "bind_identity", "raise_loopback", "set_clock", "set_hostname"]

# linux/random.h
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
# linux/sockios.h, linux/if.h
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41


def set_clock(clock_ns: int) -> None:
    """Sets the wall clock to nanoseconds since the epoch."""
    time.clock_settime_ns(time.CLOCK_REALTIME, clock_ns)


def add_entropy(seed: bytes) -> None:
    """Credits the seed to the kernel's generator and makes it take effect at once: a twin would share its state."""
    pool = struct.pack("ii", len(seed) * 8, len(seed)) + seed
    fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, pool)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def set_hostname(name: str) -> None:
    """Sets the kernel's host name."""
    socket.sethostname(name)


def raise_loopback() -> None:
    """Brings the interface ``lo`` up, which gives it 127.0.0.1 and ::1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def bind_identity(path: str, content: str, runtime: str) -> None:
    """Shows ``content`` at ``path`` without changing the disk: a file in the directory ``runtime``, bind-mounted.

    Does nothing where the environment has no such file: creating the mount point would be a change of the workspace.
    """
    if not os.path.isfile(path) or os.path.islink(path):
        return
    source = f"{runtime}/{os.path.basename(path)}"
    with open(source, "w") as file:
        file.write(content)
    os.chmod(source, 0o444 if path.endswith("machine-id") else 0o644)
    mount(source, path, flags=MS_BIND)
