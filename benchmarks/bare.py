"""The baseline on the host: a blocking socket to :mod:`benchmarks.bare_agent`, and QEMU started by hand with it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import bare_agent
from pyro_async.images.cpio import Archive
from pyro_async.images.tools import AGENT_COMMAND
from pyro_async.vmm.channels import VirtioSerialChannel

__all__ = ["BARE_COMMAND", "BareLink", "BesideAgent", "bare_initramfs", "command_line_of", "first_exec_by_hand"]

_PORT = "pyro.bare"
_SOURCE = Path(bare_agent.__file__).read_text()
#: Starts the bare agent as a command in a guest whose channel is :class:`BesideAgent`.
BARE_COMMAND = [*AGENT_COMMAND[:-2], "-c", _SOURCE, _PORT]
_CONNECT_SECONDS = 30.0
_ANSWER_SECONDS = 120.0


class BesideAgent(VirtioSerialChannel):
    """pyro's channel and, on a device of its own of the same kind, one for the bare agent."""

    bare_socket = "bare.sock"

    qemu_arguments: Sequence[str] = (
        *VirtioSerialChannel.qemu_arguments,
        *("-chardev", f"socket,id=bare,path={bare_socket},server=on,wait=off"),
        *("-device", "virtio-serial-device,id=beside,max_ports=2"),
        *("-device", f"virtserialport,bus=beside.0,chardev=bare,name={_PORT}"),
    )


class BareLink:
    """A blocking connection to a bare agent. Requests wait in the channel until the agent reads them."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ANSWER_SECONDS)
        deadline = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                self._socket.connect(str(path))
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)

    def close(self) -> None:
        self._socket.close()

    def run(self, command: str) -> bytes:
        """Runs a command, given as words, and returns its output."""
        self._socket.sendall(f"run {command}\n".encode())
        return self._answer()

    def pull(self, size: int, command: str = "") -> None:
        """Takes ``size`` bytes from the agent, or from a command that writes as many."""
        self._socket.sendall(f"relay {command}\n".encode() if command else f"send {size}\n".encode())
        while size:
            size -= len(self._received(min(size, 1 << 20)))
        self._answer()

    def push(self, size: int, command: str = "") -> None:
        """Sends ``size`` bytes to the agent, or to a command; returns when all were taken."""
        # As long as the agent's read, so that this takes nothing of what follows.
        self._socket.sendall((f"feed {size} {command}" if command else f"take {size}").encode().ljust(4096))
        block = memoryview(bytes(1 << 20))
        while size:
            size -= self._socket.send(block[:size])
        self._answer()

    def _answer(self) -> bytes:
        head = b""
        while len(head) < 4:
            head += self._received(4 - len(head))
        size, output = int.from_bytes(head, "big"), b""
        while len(output) < size:
            output += self._received(size - len(output))
        return output

    def _received(self, size: int) -> bytes:
        data = self._socket.recv(size)
        if not data:
            raise ConnectionError("the bare agent's machine is gone")
        return data


def bare_initramfs(initramfs: Path) -> bytes:
    """pyro's own initramfs, with the bare agent in the agent's place."""
    start, own = " ".join(AGENT_COMMAND[-2:]).encode(), b"/bare.py"
    image = initramfs.read_bytes()
    assert image.count(start) == 1
    # An archive behind the first adds to it; within the first only what keeps its length can be replaced.
    added = Archive()
    added.file("bare.py", _SOURCE.encode())
    return image.replace(start, own.ljust(len(start))) + added.getvalue()


def command_line_of(directory: Path) -> list[str]:
    """The arguments of the process that works in a machine's directory: of the VMM, as its driver started it."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == directory:
                return (process / "cmdline").read_text().rstrip("\0").split("\0")
    raise FileNotFoundError(f"no process works in {directory}")


def first_exec_by_hand(command: Sequence[str], directory: Path) -> float:
    """Starts QEMU and returns the seconds until the bare agent in it has run ``true``."""
    began = time.perf_counter()
    with _process(command, directory):
        link = BareLink(directory / "agent.sock")
        link.run("true")
        seconds = time.perf_counter() - began
        link.close()
    return seconds


@contextmanager
def _process(command: Sequence[str], directory: Path) -> Iterator[None]:
    for left in directory.iterdir():
        with suppress(FileNotFoundError):
            left.unlink()
    process = subprocess.Popen(command, cwd=directory)
    try:
        yield
    finally:
        process.kill()
        process.wait()
