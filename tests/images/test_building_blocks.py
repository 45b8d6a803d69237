"""The parts of image building that touch nothing but bytes and small files."""

from __future__ import annotations

import bz2
import ctypes
import gzip
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_async.errors import EnvironmentBuildFailed
from pyro_async.images.cpio import Archive
from pyro_async.images.initramfs import build_initramfs
from pyro_async.images.modules import dependencies, dependency_table, load_order, module_name
from pyro_async.images.payload import extract_kernel
from pyro_async.images.sparse import clone_file

KERNEL = b"\x7fELF" + bytes(range(256)) * 64


def boot_image(payload: bytes) -> bytes:
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, 0x020F)
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + bytes(16) + payload + b"trailing"


def lz4_legacy(data: bytes) -> bytes:
    library = ctypes.CDLL("liblz4.so.1")
    blocks = b""
    for start in range(0, len(data), 4096):
        part = data[start : start + 4096]
        buffer = ctypes.create_string_buffer(2 * len(part) + 64)
        length = library.LZ4_compress_default(part, buffer, len(part), len(buffer))
        blocks += struct.pack("<I", length) + buffer.raw[:length]
    return b"\x02\x21\x4c\x18" + blocks


def zstd(data: bytes) -> bytes:
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_compress.restype = ctypes.c_size_t
    buffer = ctypes.create_string_buffer(2 * len(data) + 64)
    length = library.ZSTD_compress(buffer, ctypes.c_size_t(len(buffer)), data, ctypes.c_size_t(len(data)), 3)
    return buffer.raw[:length]


@pytest.mark.parametrize(
    "compress",
    [
        lz4_legacy,
        zstd,
        gzip.compress,
        lzma.compress,
        lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
        bz2.compress,
    ],
    ids=["lz4", "zstd", "gzip", "xz", "lzma", "bzip2"],
)
def test_the_kernel_comes_out_of_a_boot_image_however_it_is_compressed(compress: Callable[[bytes], bytes]) -> None:
    payload = compress(KERNEL) + struct.pack("<I", len(KERNEL))
    assert extract_kernel(boot_image(payload)) == KERNEL


def test_an_elf_kernel_is_taken_as_it_is() -> None:
    assert extract_kernel(KERNEL) == KERNEL


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "no x86 boot image"),
        (bytes(4096), "no x86 boot image"),
        (boot_image(b"?" * 64), "compressed in an unknown way"),
        (boot_image(gzip.compress(b"not a kernel")), "not hold an ELF kernel"),
        (boot_image(b"\x1f\x8b" + bytes(64)), "could not be decompressed"),
        (boot_image(b"\x02\x21\x4c\x18" + b"\xff" * 64), "could not be decompressed"),
        (boot_image(lz4_legacy(KERNEL))[:2000], "truncated"),
    ],
)
def test_a_damaged_boot_image_is_a_typed_error(image: bytes, message: str) -> None:
    with pytest.raises(EnvironmentBuildFailed, match=message):
        extract_kernel(image)


NEEDS = {
    "virtio_blk": ["virtio_ring", "virtio"],
    "virtio": ["virtio_ring"],
    "virtio_ring": [],
    "overlay": [],
    "left": ["right"],
    "right": ["left"],
}


def test_modules_are_ordered_after_what_they_need() -> None:
    assert load_order(["virtio_blk", "overlay"], NEEDS, frozenset()) == [
        "virtio_ring",
        "virtio",
        "virtio_blk",
        "overlay",
    ]


def test_built_in_modules_are_not_loaded() -> None:
    assert load_order(["virtio", "ext4"], NEEDS, frozenset({"ext4", "virtio_ring"})) == ["virtio"]


@pytest.mark.parametrize("name", ["absent", "left"])
def test_a_missing_module_or_a_cycle_is_a_typed_error(name: str) -> None:
    with pytest.raises(EnvironmentBuildFailed, match=name):
        load_order([name], NEEDS, frozenset())


def test_the_dependency_table_lists_the_last_to_load_first() -> None:
    table = dependency_table(["virtio_ring", "virtio_blk"], NEEDS, frozenset())
    assert table == "virtio_ring.ko:\nvirtio_blk.ko: virtio.ko virtio_ring.ko\n"


def test_dependencies_are_read_from_a_modules_own_description() -> None:
    assert dependencies(b"\x7fELF..license=GPL\0depends=virtio-ring,virtio\0name=x\0") == ["virtio_ring", "virtio"]
    assert dependencies(b"\x7fELF..license=GPL\0depends=\0name=x\0") == []
    assert module_name("virtio-rng.ko.xz") == "virtio_rng"


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = Archive()
    archive.directory("etc")
    archive.file("etc/motd", b"hello\n", 0o640)
    archive.file("odd", b"x")
    archive.symlink("link", "etc/motd")
    data = archive.getvalue()
    subprocess.run(["cpio", "-idm", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert len(data) % 512 == 0
    assert (tmp_path / "etc/motd").read_bytes() == b"hello\n"
    assert (tmp_path / "etc/motd").stat().st_mode & 0o7777 == 0o640
    assert (tmp_path / "link").readlink() == Path("etc/motd")
    assert (tmp_path / "odd").read_bytes() == b"x"


def test_equal_content_makes_an_equal_initramfs(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "release").write_text("6.1.0\n")
    table = "virtio_ring.ko:\nvirtio_mmio.ko: virtio_ring.ko\nvirtio_blk.ko:\nvirtio_console.ko:\noverlay.ko:\n"
    (tmp_path / "modules/modules.dep").write_text(table)
    for line in table.splitlines():
        (tmp_path / "modules" / line.partition(":")[0]).write_bytes(b"module")
    (tmp_path / "busybox").write_bytes(b"busybox")
    image = build_initramfs(tmp_path, tmp_path / "busybox")
    assert image == build_initramfs(tmp_path, tmp_path / "busybox")
    # This kernel has virtio_rng and vsock built in: they must not be asked for.
    assert b'modules="virtio_mmio virtio_blk overlay virtio_console" ;;' in image
    assert b'modules="virtio_mmio virtio_blk overlay" ;;' in image
    assert b"lib/modules/6.1.0/virtio_ring.ko\0" in image


def test_a_clone_has_the_content_and_the_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as stream:
        stream.write(b"head")
        stream.seek(1 << 30)
        stream.write(os.urandom(100_000))
        stream.truncate(4 << 30)
    clone_file(source, target, sync=True)
    state = target.stat()
    assert state.st_size == 4 << 30
    assert state.st_blocks * 512 < 1 << 20
    with source.open("rb") as left, target.open("rb") as right:
        for position in (0, 1 << 30, (4 << 30) - 10):
            assert os.pread(left.fileno(), 200_000, position) == os.pread(right.fileno(), 200_000, position)


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_files_without_data_or_without_holes_are_cloned_too(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    clone_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    os.truncate(tmp_path / "source", size + (1 << 20))
    clone_file(tmp_path / "source", tmp_path / "grown")
    assert (tmp_path / "grown").read_bytes() == content + bytes(1 << 20)


def test_a_clone_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "target").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        clone_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"old"
