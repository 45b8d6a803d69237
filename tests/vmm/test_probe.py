from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from pyro_async.errors import DriverUnavailable, WorkspaceFailed
from pyro_async.vmm import probe as probing
from pyro_async.vmm.driver import Machine, MachineSpec
from pyro_async.vmm.probe import probe, select_driver
from pyro_async.vmm.process import ProcessIdentity
from pyro_async.vmm.qemu import QemuDriver


class BrokenDriver:
    """A driver whose VMs never start; counts how often that was tried."""

    name = "broken"
    acceleration = "kvm"

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.attempts = 0

    def start(self, spec: MachineSpec) -> AbstractAsyncContextManager[Machine]:
        self.attempts += 1
        raise WorkspaceFailed("the VMM does not start")

    def adopt(self, spec: MachineSpec, identity: ProcessIdentity) -> AbstractAsyncContextManager[Machine]:
        raise AssertionError("a probe adopts nothing")


@pytest.fixture
def broken(tmp_path: Path) -> BrokenDriver:
    binary = tmp_path / "vmm"
    binary.touch()
    return BrokenDriver(binary)


@pytest.mark.vm
async def test_probe_reports_a_driver_that_runs_a_guest(guest_kernel: Path) -> None:
    result = await probe(QemuDriver("tcg"), guest_kernel)
    assert (result.driver, result.acceleration, result.works, result.detail) == ("qemu", "tcg", True, "runs a guest")


@pytest.mark.vm
async def test_probe_reports_a_guest_that_never_ends(guest_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probing.PROBE_SECONDS, "tcg", 0.5)
    result = await probe(QemuDriver("tcg"), guest_kernel)
    assert (result.works, result.detail) == (False, "does not run a guest: nothing within 0.5 s")
    assert result.seconds < 3


@pytest.mark.vm
async def test_probe_reports_a_kernel_that_is_none(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"no kernel")
    result = await probe(QemuDriver("tcg"), kernel)
    assert not result.works
    assert result.detail.startswith("does not start: QEMU did not start: ")


@pytest.mark.vm
async def test_first_driver_that_works_is_selected_and_remembered(
    broken: BrokenDriver, guest_kernel: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "probes.json"
    working = QemuDriver("tcg")
    for _ in range(2):
        assert await select_driver([broken, working], guest_kernel, cache) is working
    assert broken.attempts == 1
    broken.binary.write_text("another version")
    assert await select_driver([broken, working], guest_kernel, cache) is working
    assert broken.attempts == 2


async def test_failure_alone_is_not_remembered(broken: BrokenDriver, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.touch()
    for attempt in (1, 2):
        with pytest.raises(DriverUnavailable, match="broken with kvm does not start: the VMM does not start"):
            await select_driver([broken], kernel, tmp_path / "probes.json")
        assert broken.attempts == attempt


async def test_damaged_cache_is_probed_over(broken: BrokenDriver, tmp_path: Path) -> None:
    kernel, cache = tmp_path / "vmlinux", tmp_path / "probes.json"
    kernel.touch()
    cache.write_bytes(msgspec.json.encode({"x": 1})[:-3])
    with pytest.raises(DriverUnavailable):
        await select_driver([broken], kernel, cache)
    assert broken.attempts == 1
