"""Making a host ready for pyro, and finding out what keeps it from being ready."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from anyio import to_thread

from pyro_async.errors import HomeBusy, PyroError
from pyro_async.home import Home
from pyro_async.images.host import check_machine, install_programs, missing_programs
from pyro_async.images.progress import Progress, Report, silent
from pyro_async.images.store import ImageStore
from pyro_async.images.workbench import Workbench
from pyro_async.vmm.leftovers import find_processes
from pyro_async.vmm.probe import probe
from pyro_async.vmm.qemu import QemuDriver

__all__ = ["Check", "Diagnosis", "SetupReport", "diagnose", "setup"]

_MINIMUM_PYTHON = (3, 11)
_MINIMUM_QEMU = (7, 0)
_MINIMUM_FREE_BYTES = 2 << 30
_SETUP = "run: pyro setup"


class SetupReport(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`setup` did.

    Attributes:
        installed: host packages that were missing.
        guest: key of kernel, initramfs and tools image.
        seconds: how long it took.
    """

    home: str
    installed: list[str]
    guest: str
    seconds: float


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding of :func:`diagnose`.

    Attributes:
        ok: pyro can work as far as this is concerned.
        detail: what was found.
        hint: what to do about it; empty if nothing needs to be done.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All findings; ``ok`` if pyro can run workspaces here."""

    ok: bool
    checks: list[Check]


async def setup(home: Path, report: Report = silent, *, refresh: bool = False) -> SetupReport:
    """Installs missing host packages and makes kernel, initramfs, tools image and the pristine disk.

    Idempotent: takes milliseconds when all is there, and goes on where an interrupted one stopped. With ``refresh``
    newer packages are used where there are any. Raises :class:`~pyro_async.errors.SetupRequired` if the host lacks
    something that cannot be installed from here, and as :class:`~pyro_async.images.store.ImageStore` does.
    """
    started_at = time.monotonic()
    root = Home(home).root
    check_machine()
    installed = await install_programs(Workbench(root), report) if missing_programs() else []
    guest = await ImageStore(root).ensure_guest(report, refresh=refresh)
    seconds = round(time.monotonic() - started_at, 3)
    return SetupReport(home=str(root), installed=installed, guest=guest.key, seconds=seconds)


async def diagnose(home: Path, deep: bool = False, report: Report = silent) -> Diagnosis:
    """Checks everything pyro depends on; changes nothing (though it creates the home directory).

    ``deep`` also reads all images to compare their checksums and boots a probe VM per driver and accelerator.
    """
    checks = []
    async for check in _checks(home, deep):
        report(Progress(phase="checking", detail=check.name))
        checks.append(check)
    return Diagnosis(ok=all(check.ok for check in checks), checks=checks)


async def _checks(home: Path, deep: bool) -> AsyncIterator[Check]:
    yield _python()
    yield _programs()
    yield await to_thread.run_sync(_qemu)
    yield _kvm()
    try:
        root = Home(home).root
    except PyroError as error:
        yield Check(name="home", ok=False, detail=error.message, hint=error.hint)
        return
    yield Check(name="home", ok=True, detail=str(root))
    yield _disk_space(root)
    images = ImageStore(root)
    yield await to_thread.run_sync(_guest, images)
    yield await to_thread.run_sync(_environments, images)
    yield await to_thread.run_sync(_checksums, images, deep)
    yield await to_thread.run_sync(_processes, Home(home))
    if deep:
        async for check in _probes(images):
            yield check


def _python() -> Check:
    ok = sys.version_info >= _MINIMUM_PYTHON
    wanted = ".".join(map(str, _MINIMUM_PYTHON))
    detail = f"{platform.python_version()} at {sys.executable}"
    return Check(name="python", ok=ok, detail=detail, hint="" if ok else f"use Python {wanted} or later")


def _programs() -> Check:
    try:
        check_machine()
    except PyroError as error:
        return Check(name="programs", ok=False, detail=error.message, hint=error.hint)
    missing = [program.name for program in missing_programs()]
    detail = f"missing: {', '.join(missing)}" if missing else "all installed"
    return Check(name="programs", ok=not missing, detail=detail, hint=_SETUP if missing else "")


def _qemu() -> Check:
    try:
        output = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return Check(name="qemu", ok=False, detail=f"does not start: {error}", hint=_SETUP)
    version = re.search(r"version (\d+)\.(\d+)", output)
    ok = version is not None and (int(version[1]), int(version[2])) >= _MINIMUM_QEMU
    wanted = ".".join(map(str, _MINIMUM_QEMU))
    detail = output.partition("\n")[0].removeprefix("QEMU emulator ")
    return Check(name="qemu", ok=ok, detail=detail, hint="" if ok else f"QEMU {wanted} or later is needed")


def _kvm() -> Check:
    # Without KVM guests are emulated, which is slower and no failure. Whether it works is seen by booting only.
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        detail = "/dev/kvm can be opened; pyro doctor --deep tells whether guests run with it"
    elif Path("/dev/kvm").exists():
        detail = "this user may not open /dev/kvm; guests are emulated"
    else:
        detail = "there is no /dev/kvm; guests are emulated"
    return Check(name="kvm", ok=True, detail=detail)


def _disk_space(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    ok = free >= _MINIMUM_FREE_BYTES
    hint = "" if ok else "free some disk space, for instance with: pyro env prune"
    return Check(name="disk space", ok=ok, detail=f"{free / (1 << 30):.1f} GiB free below {root}", hint=hint)


def _guest(images: ImageStore) -> Check:
    guest = images.current_guest()
    if guest is None:
        return Check(name="guest images", ok=False, detail="not made yet, or out of date", hint=_SETUP)
    return Check(name="guest images", ok=True, detail=f"kernel, initramfs and tools {guest.key[:12]}")


def _environments(images: ImageStore) -> Check:
    built = [environment.name for environment in images.list() if environment.built]
    detail = ", ".join(built) if built else "none built yet; they are built when first used"
    return Check(name="environments", ok=True, detail=detail)


def _checksums(images: ImageStore, deep: bool) -> Check:
    problems = images.damage(deep=deep)
    checked = "all checksums are right" if deep else "all files have the size and time they were made with"
    hint = f"{_SETUP}, and build damaged environments again with: pyro env build" if problems else ""
    return Check(name="images", ok=not problems, detail="; ".join(problems) or checked, hint=hint)


def _processes(home: Home) -> Check:
    """Looks for VMs that run on though nobody looks after them."""
    try:
        # Held for this moment only: a daemon may be about to start.
        with home.owned():
            pass
    except HomeBusy:
        return Check(name="processes", ok=True, detail="a daemon looks after this home's VMs")
    left = [identity.pid for found in find_processes(home.workspaces).values() for identity in found]
    if not left:
        return Check(name="processes", ok=True, detail="none left over")
    detail = f"VMs without a daemon: {', '.join(map(str, left))}"
    return Check(name="processes", ok=False, detail=detail, hint="run: pyro workspace list (it starts the daemon)")


async def _probes(images: ImageStore) -> AsyncIterator[Check]:
    guest = images.current_guest()
    if guest is None:
        return
    results = [await probe(driver, guest.kernel) for driver in (QemuDriver("kvm"), QemuDriver("tcg"))]
    enough = any(result.works for result in results)
    for result in results:
        spare = "" if result.works or not enough else ", and does not have to"
        yield Check(
            name=f"{result.driver} with {result.acceleration}",
            ok=enough,
            detail=f"{result.detail}{spare} ({result.seconds:.1f} s)",
            hint="" if enough else "see the other findings; emulation with tcg needs nothing but QEMU",
        )
