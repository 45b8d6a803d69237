"""The kernel inside a bzImage: x86 boot files carry it compressed; Firecracker and microvm want the ELF file.

Layout of the header: Linux Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import bz2
import ctypes
import lzma
import struct
import zlib
from collections.abc import Callable

from pyro_async.errors import EnvironmentBuildFailed

__all__ = ["extract_kernel"]

_ELF_MAGIC = b"\x7fELF"
_PAYLOAD_PROTOCOL = 0x0208
"""Boot protocol that introduced payload_offset and payload_length."""

_LZ4_BLOCK = 8 << 20
"""Most that one block of the LZ4 legacy format decompresses to."""

_KERNEL_LIMIT = 1 << 30


def extract_kernel(image: bytes) -> bytes:
    """Returns the uncompressed ELF kernel of a bzImage, or the image itself if it is an ELF file already.

    Blocks for about 0.1 s. Raises :class:`~pyro_async.errors.EnvironmentBuildFailed` if the image is none, is damaged,
    or is compressed in a way nothing here can undo.
    """
    if image.startswith(_ELF_MAGIC):
        return image
    payload = _payload(image)
    for magic, decompress in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            try:
                kernel = decompress(payload)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise EnvironmentBuildFailed(f"the kernel image could not be decompressed: {error}") from error
            if not kernel.startswith(_ELF_MAGIC):
                raise EnvironmentBuildFailed("the kernel image does not hold an ELF kernel")
            return kernel
    raise EnvironmentBuildFailed(f"the kernel image is compressed in an unknown way (it begins {payload[:6].hex()})")


def _payload(image: bytes) -> bytes:
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise EnvironmentBuildFailed("the kernel package holds no x86 boot image")
    (protocol,) = struct.unpack_from("<H", image, 0x206)
    if protocol < _PAYLOAD_PROTOCOL:
        raise EnvironmentBuildFailed(f"the kernel image's boot protocol {protocol:#x} is too old")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    if not length or len(payload) != length:
        raise EnvironmentBuildFailed("the kernel image is truncated")
    return payload


def _library(name: str) -> ctypes.CDLL:
    # No Python before 3.14 knows these formats; apt itself is linked with both libraries, so they are always there.
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise ValueError(f"{name} is missing") from error


def _lz4_legacy(payload: bytes) -> bytes:
    library = _library("liblz4.so.1")
    # The build appends the uncompressed size after the last block.
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    end = len(payload) - 4
    buffer = ctypes.create_string_buffer(_LZ4_BLOCK)
    kernel = bytearray()
    position = 4
    while position + 4 <= end:
        (length,) = struct.unpack_from("<I", payload, position)
        block = payload[position + 4 : min(position + 4 + length, end)]
        written = library.LZ4_decompress_safe(block, buffer, len(block), _LZ4_BLOCK)
        if written <= 0:
            raise ValueError("damaged LZ4 block")
        kernel += memoryview(buffer)[:written]
        position += 4 + length
    if len(kernel) != size:
        raise ValueError(f"{len(kernel)} bytes where {size} were announced")
    return bytes(kernel)


def _zstd(payload: bytes) -> bytes:
    library = _library("libzstd.so.1")
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if size > _KERNEL_LIMIT:
        raise ValueError("implausible size")
    buffer = ctypes.create_string_buffer(size)
    if library.ZSTD_decompress(buffer, size, payload[:-4], len(payload) - 4) != size:
        raise ValueError("damaged zstd frame")
    return buffer.raw


_DECOMPRESSORS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x02\x21\x4c\x18": _lz4_legacy,
    b"\x28\xb5\x2f\xfd": _zstd,
    # Decompressor objects stop at the end of their stream and so ignore the size that follows it.
    b"\x1f\x8b": lambda payload: zlib.decompressobj(wbits=31).decompress(payload),
    b"\xfd7zXZ": lambda payload: lzma.LZMADecompressor().decompress(payload),
    b"\x5d\x00\x00": lambda payload: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload),
    b"BZh": lambda payload: bz2.BZ2Decompressor().decompress(payload),
}
