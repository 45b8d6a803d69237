"""The smallest guest there is: an initramfs whose only program prints a marker and powers the machine off.

A driver that runs it has executed a kernel's whole boot, user-mode code and the way back out. It depends on nothing but
the kernel under test.
"""

from __future__ import annotations

import struct

__all__ = ["CODE_ADDRESS", "MARKER", "probe_initramfs", "static_executable"]

MARKER = "pyro probe: guest is running"

_LOAD_ADDRESS = 0x400000
_HEADERS = 64 + 56
CODE_ADDRESS = _LOAD_ADDRESS + _HEADERS
"""Where the code of a :func:`static_executable` lies in memory."""


def probe_initramfs() -> bytes:
    """An uncompressed newc archive with an executable ``/init`` for x86-64.

    Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    program = static_executable(_init_code())
    return _newc_entry("init", program, mode=0o100755) + _newc_entry("TRAILER!!!", b"", mode=0)


def static_executable(code: bytes) -> bytes:
    """A static ELF program for x86-64 that enters ``code`` at its first byte."""
    size = _HEADERS + len(code)
    elf_header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",  # 64 bits, little endian
        *(2, 62, 1),  # executable, x86-64
        *(CODE_ADDRESS, 64, 0),  # entry, program headers, no sections
        *(0, 64, 56, 1, 64, 0, 0),
    )
    # One segment, readable and executable, holds the whole file.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return elf_header + segment + code


def _init_code() -> bytes:
    message = MARKER.encode() + b"\n"
    # The kernel opened /dev/console as descriptors 0 to 2.
    rest = b"".join(
        (
            b"\xba" + struct.pack("<I", len(message)),  # mov edx, length
            b"\xb8" + struct.pack("<I", 1),  # mov eax, SYS_write
            b"\x0f\x05",  # syscall
            b"\xbf" + struct.pack("<I", 0xFEE1DEAD),  # mov edi, LINUX_REBOOT_MAGIC1
            b"\xbe" + struct.pack("<I", 672274793),  # mov esi, LINUX_REBOOT_MAGIC2
            b"\xba" + struct.pack("<I", 0x4321FEDC),  # mov edx, LINUX_REBOOT_CMD_POWER_OFF
            b"\xb8" + struct.pack("<I", 169),  # mov eax, SYS_reboot
            b"\x0f\x05",  # syscall
            b"\xeb\xfe",  # jmp to itself: returning from PID 1 would panic
        )
    )
    return b"".join(
        (
            b"\xbf" + struct.pack("<I", 1),  # mov edi, stdout
            b"\x48\x8d\x35" + struct.pack("<i", len(rest)),  # lea rsi, [rip + rest], the message
            rest,
            message,
        )
    )


def _newc_entry(name: str, content: bytes, *, mode: int) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and special device numbers, length of the name, checksum
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _pad(header + encoded) + _pad(content)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
