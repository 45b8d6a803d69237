"""Which driver really runs a guest on this host? Answered by booting one: a /dev/kvm that opens proves nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio
import msgspec
from anyio import to_thread

from pyro_async.errors import DriverUnavailable, PyroError
from pyro_async.vmm.driver import Driver, MachineExit, MachineSpec, Probe
from pyro_async.vmm.probe_guest import MARKER, probe_initramfs

__all__ = ["probe", "select_driver"]

PROBE_SECONDS = {"kvm": 8.0, "tcg": 30.0}
"""How long a probe guest may take. A working KVM needs a fraction of a second; a broken one may spin for minutes."""

_MEMORY_MIB = 128
_DISK_BYTES = 1 << 20


async def probe(driver: Driver, kernel: Path) -> Probe:
    """Boots a guest of a few hundred bytes on ``kernel`` and reports whether it ran to its end in time.

    Never raises for a driver that does not work: that is its result.
    """
    deadline_seconds = PROBE_SECONDS[driver.acceleration]
    started_at = time.monotonic()
    try:
        with anyio.fail_after(deadline_seconds):
            ended, console = await _boot(driver, kernel)
        works = ended.clean and MARKER in console
        detail = "runs a guest" if works else f"does not run a guest: {ended.reason}"
    except TimeoutError:
        works, detail = False, f"does not run a guest: nothing within {deadline_seconds:g} s"
    except PyroError as error:
        works, detail = False, f"does not start: {error}"
    return Probe(
        driver=driver.name,
        acceleration=driver.acceleration,
        works=works,
        detail=detail,
        seconds=round(time.monotonic() - started_at, 3),
    )


async def select_driver(
    candidates: Iterable[Driver], kernel: Path, cache: Path, on_probe: Callable[[Driver], None] = lambda driver: None
) -> Driver:
    """Returns the first of ``candidates``, best first, that runs a guest; probes until one does.

    ``on_probe`` is called before each. Results are kept in the JSON file ``cache`` for as long as the VMM's binary, the
    kernel, the host's boot and the access to /dev/kvm stay the same. Failures are kept only beside a success: a host
    that was merely busy is probed again. Takes up to a minute without a cache; raises
    :class:`~pyro_async.errors.DriverUnavailable` if none works.
    """
    known = await to_thread.run_sync(_read_cache, cache)
    probed: dict[str, Probe] = {}
    for driver in candidates:
        try:
            key = await to_thread.run_sync(_fingerprint, driver, kernel)
        except DriverUnavailable as error:
            result = Probe(
                driver=driver.name, acceleration=driver.acceleration, works=False, detail=str(error), seconds=0.0
            )
            key = f"{driver.name} {driver.acceleration} missing"
        else:
            if key not in known:
                on_probe(driver)
            result = known.get(key) or await probe(driver, kernel)
        probed[key] = result
        if result.works:
            if any(known.get(key) != result for key, result in probed.items()):
                await to_thread.run_sync(_publish_cache, cache, probed)
            return driver
    findings = "; ".join(f"{result.driver} with {result.acceleration} {result.detail}" for result in probed.values())
    raise DriverUnavailable(f"no virtual machine runs on this host: {findings}", hint="run `pyro doctor --deep`")


async def _boot(driver: Driver, kernel: Path) -> tuple[MachineExit, str]:
    async with anyio.TemporaryDirectory(prefix="pyro-probe-") as name:
        directory = Path(name)
        initramfs = directory / "initramfs"
        await anyio.Path(initramfs).write_bytes(probe_initramfs())
        spec = MachineSpec(
            directory=directory,
            kernel=kernel,
            initramfs=initramfs,
            tools=directory / "tools",
            base=directory / "base",
            upper=directory / "upper",
            mem_mib=_MEMORY_MIB,
        )
        for disk in (spec.tools, spec.base, spec.upper):
            await to_thread.run_sync(_make_sparse, disk)
        async with driver.start(spec) as machine:
            return await machine.wait(), machine.console_tail()


def _make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, _DISK_BYTES)


def _fingerprint(driver: Driver, kernel: Path) -> str:
    """Names everything a probe's result depends on."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    files = []
    for path in (driver.binary, kernel):
        try:
            status = path.stat()
        except OSError as error:
            raise DriverUnavailable(f"cannot read {path}: {error.strerror}") from error
        files.append(f"{path} {status.st_mtime_ns} {status.st_size}")
    return " ".join((driver.name, driver.acceleration, *files, boot_id, f"kvm={kvm}"))


def _read_cache(path: Path) -> dict[str, Probe]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Probe])
    except (OSError, msgspec.DecodeError):
        return {}


def _publish_cache(path: Path, probes: dict[str, Probe]) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(msgspec.json.encode(probes))
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)  # the next selection probes again
