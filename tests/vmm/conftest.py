from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from pyro_async.errors import SetupRequired
from pyro_async.vmm.channels import Channel, HybridVsockChannel, VirtioSerialChannel
from pyro_async.vmm.driver import MachineSpec
from pyro_async.vmm.qemu import QemuDriver
from pyro_async.vmm.vhost_vsock import fetch_vhost_device_vsock, find_vhost_device_vsock
from tests.vmm.guest import build_test_initramfs
from tests.vmm.leftovers import processes_in

DISK_BYTES = 64 << 20


@pytest.fixture(scope="session")
def guest_kernel(pyro_home: Path) -> Path:
    """The vmlinux of a kernel artifact, a directory that holds the kernel's modules too."""
    if kernel := os.environ.get("PYRO_TEST_KERNEL"):
        return Path(kernel)
    if built := sorted(pyro_home.glob("guest/kernel/*/vmlinux")):
        return built[-1]
    pytest.skip(f"{pyro_home} has no kernel: run `pyro setup`, or name one in PYRO_TEST_KERNEL")


@pytest.fixture(scope="session")
def guest_initramfs(guest_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    initramfs = tmp_path_factory.mktemp("guest") / "initramfs"
    busybox = shutil.which("busybox")
    assert busybox, "install busybox-static"
    initramfs.write_bytes(build_test_initramfs(guest_kernel.parent / "modules", Path(busybox)))
    return initramfs


@pytest.fixture(scope="session")
def vhost_device_vsock(pyro_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if found := find_vhost_device_vsock(pyro_home / "host" / "bin"):
        return found
    try:
        return anyio.run(fetch_vhost_device_vsock, tmp_path_factory.mktemp("host-bin"))
    except SetupRequired as error:
        pytest.skip(str(error))


@pytest.fixture
def machine_directory(tmp_path: Path) -> Iterator[Path]:
    """A VM's directory, under a path too long for a socket address; nothing may run in it when the test is over."""
    directory = tmp_path / ("long" * 30) / "vm"
    directory.mkdir(parents=True)
    yield directory
    assert processes_in(directory) == []


@pytest.fixture
def machine_spec(machine_directory: Path, guest_kernel: Path, guest_initramfs: Path) -> MachineSpec:
    for name in ("tools", "base", "upper"):
        (machine_directory / name).touch()
        os.truncate(machine_directory / name, DISK_BYTES)
    return MachineSpec(
        directory=machine_directory,
        kernel=guest_kernel,
        initramfs=guest_initramfs,
        tools=machine_directory / "tools",
        base=machine_directory / "base",
        upper=machine_directory / "upper",
        mem_mib=128,
    )


@pytest.fixture
def qemu() -> QemuDriver:
    return QemuDriver("tcg")


@pytest.fixture(params=["virtio-serial", "hybrid-vsock"])
def make_channel(request: pytest.FixtureRequest) -> Callable[[Path], Channel]:
    if request.param == "virtio-serial":
        return VirtioSerialChannel
    return partial(HybridVsockChannel, binary=request.getfixturevalue("vhost_device_vsock"))
