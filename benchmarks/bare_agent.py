"""The baseline in the guest: a loop that reads a line, does what it says, answers, and does nothing else meanwhile.

Runs on the guest tools' Python: beside the real agent as a command, with the name of its serial port as argument, or in
its place as PID 1, and then in the environment's root. Lines are ``run COMMAND``, ``send BYTES``, ``take BYTES``, and
``relay COMMAND`` and ``feed BYTES COMMAND``, which join the channel with a command's output or input.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

_BLOCK = bytes(64 * 1024)


def find_port(name: str) -> str:
    """The device of the virtio serial port of this name."""
    ports = "/sys/class/virtio-ports"
    return next(f"/dev/{port}" for port in os.listdir(ports) if _line(f"{ports}/{port}/name") == name)


def enter_base() -> None:
    """Mounts the environment's image and makes it the root."""
    disk = next(disk for disk in os.listdir("/sys/block") if _line(f"/sys/block/{disk}/serial") == "pyro-base")
    os.mkdir("/base")
    if ctypes.CDLL(None).mount(f"/dev/{disk}".encode(), b"/base", b"ext4", 1, None):
        raise OSError(f"cannot mount /dev/{disk}")
    os.chroot("/base")


def _line(path: str) -> str:
    try:
        with open(path) as file:
            return file.readline().strip()
    except FileNotFoundError:
        return ""


def _write(fd: int, block: bytes) -> None:
    while block:
        block = block[os.write(fd, block) :]


def serve(port: int) -> None:
    """Answers for ever; every answer is its length in four bytes and the output."""
    while True:
        verb, _, argument = os.read(port, 4096).decode().strip().partition(" ")
        output = b""
        if verb == "run":
            done = subprocess.run(argument.split(), capture_output=True, check=False)
            output = done.stdout + done.stderr
        elif verb == "send":
            left = int(argument)
            while left:
                left -= os.write(port, _BLOCK[:left])
        elif verb == "relay":
            with subprocess.Popen(argument.split(), stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                while block := os.read(process.stdout.fileno(), len(_BLOCK)):
                    _write(port, block)
        elif verb == "feed":
            size, _, command = argument.partition(" ")
            with subprocess.Popen(command.split(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
                assert process.stdin is not None
                left = int(size)
                while left:
                    block = os.read(port, min(left, len(_BLOCK)))
                    _write(process.stdin.fileno(), block)
                    left -= len(block)
        elif verb == "take":
            left = int(argument)
            while left:
                left -= len(os.read(port, len(_BLOCK)))
        else:
            continue  # nobody is connected
        os.write(port, len(output).to_bytes(4, "big") + output)


if __name__ == "__main__":
    device = os.open(find_port(sys.argv[1] if len(sys.argv) > 1 else "pyro.agent"), os.O_RDWR)
    if os.getpid() == 1:
        enter_base()
    serve(device)
