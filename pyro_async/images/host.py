"""Programs of the host that pyro needs, and installing the missing ones through apt."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from pyro_async.errors import EnvironmentBuildFailed, PyroError, SetupRequired
from pyro_async.images.commands import search_path
from pyro_async.images.progress import Report
from pyro_async.images.workbench import Build, Workbench

__all__ = ["HostProgram", "check_machine", "install_programs", "missing_programs"]

LOCK_WAIT_SECONDS = 300
"""How long apt waits for another package installation to end."""

_PHASE = "host packages"
_INSTALL = ("install", "--yes", "--no-install-recommends", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT_SECONDS}")


class HostProgram(msgspec.Struct, frozen=True):
    """A program, the Debian package that has it, and whether only those who are not root need it."""

    name: str
    package: str
    unprivileged: bool = False


_PROGRAMS = (
    HostProgram("qemu-system-x86_64", "qemu-system-x86"),
    HostProgram("mmdebstrap", "mmdebstrap"),
    HostProgram("mke2fs", "e2fsprogs"),
    HostProgram("tar", "tar"),
    HostProgram("fakeroot", "fakeroot", unprivileged=True),
    HostProgram("newuidmap", "uidmap", unprivileged=True),
)


def check_machine() -> None:
    """Raises :class:`~pyro_async.errors.SetupRequired` where pyro cannot work at all: not Linux on x86-64, no apt."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise SetupRequired(f"pyro runs on Linux on x86-64, and this is {platform.system()} on {platform.machine()}")
    if not (_find("apt-get") and _find("dpkg-deb")):
        raise SetupRequired(
            "apt is missing: pyro makes its images from Debian packages",
            hint="use Debian 12 or later, for instance in a container",
        )


def missing_programs() -> list[HostProgram]:
    """Returns the programs that are not on PATH, the system directories included."""
    root = os.geteuid() == 0
    return [program for program in _PROGRAMS if not (_find(program.name) or (root and program.unprivileged))]


async def install_programs(workbench: Workbench, report: Report) -> list[str]:
    """Installs what is missing and returns the names of the packages; does nothing if nothing is.

    Uses apt as root, or through sudo where that asks no password. The download can be cancelled; the installation
    itself is seen through, because a half-configured package is worse than a moment's wait.

    Raises:
        SetupRequired: without the rights to install; the hint is the line to run.
        EnvironmentBuildFailed: apt failed; the message has the end of its output.
    """
    check_machine()
    async with workbench.exclusive("host-packages", report):
        packages = sorted({program.package for program in missing_programs()})
        if packages:
            async with workbench.build("host-packages", report) as build:
                await _install(build, packages)
        if still := missing_programs():
            names = ", ".join(program.name for program in still)
            raise SetupRequired(f"still missing after installing {' '.join(packages)}: {names}")
    return packages


async def _install(build: Build, packages: Sequence[str]) -> None:
    apt = await _privileged_apt(build, packages)

    def on_line(line: str) -> None:
        if line.startswith(("Get:", "Unpacking ", "Setting up ")):
            build.progress(_PHASE, line.partition(" ")[2] if line.startswith("Get:") else line)

    build.progress(_PHASE, f"installing {' '.join(packages)}")
    download = [*apt, *_INSTALL, "--download-only", *packages]
    try:
        await build.run(download, what="downloading host packages", on_line=on_line)
    except EnvironmentBuildFailed:
        build.progress(_PHASE, "fetching package lists")
        await build.run([*apt, "update"], what="fetching package lists", on_line=on_line)
        await build.run(download, what="downloading host packages", on_line=on_line)
    with anyio.CancelScope(shield=True):
        await build.run([*apt, *_INSTALL, *packages], what="installing host packages", on_line=on_line)


async def _privileged_apt(build: Build, packages: Sequence[str]) -> list[str]:
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    if os.geteuid() == 0:
        return apt
    line = shlex.join(["sudo", "apt-get", "install", "--yes", "--no-install-recommends", *packages])
    refusal = SetupRequired(f"these packages are missing: {' '.join(packages)}", hint=f"run: {line}")
    if not _find("sudo"):
        raise refusal
    try:
        await build.run(["sudo", "-n", "true"], what="asking for sudo")
    except PyroError:
        raise refusal from None
    build.progress(_PHASE, "using sudo")
    return ["sudo", "-n", *apt]


def _find(program: str) -> Path | None:
    found = shutil.which(program, path=search_path())
    return Path(found) if found else None
