"""Debian packages fetched without root and unpacked without being installed.

apt checks their signatures. The host's own package lists serve where they are there and fresh; otherwise lists of our
own are fetched into the home from the host's sources, so that nothing of the host's changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import anyio

from pyro_async.errors import EnvironmentBuildFailed
from pyro_async.images.workbench import Build

__all__ = ["Packages"]

_PHASE = "packages"
_URI_LINE = re.compile(r"^'[^']+' (\S+\.deb) \d+", re.MULTILINE)


class Packages:
    """apt as an ordinary user, for one build.

    Args:
        lists: directory for package lists of our own, kept between builds.
    """

    def __init__(self, build: Build, lists: Path) -> None:
        self._build = build
        self._private = lists
        self._options: list[str] = []

    async def dependency(self, package: str, pattern: str) -> str:
        """Returns the dependency of ``package`` whose name matches: what a meta package stands for today."""
        try:
            return await self._dependency(package, pattern)
        except EnvironmentBuildFailed:
            await self._refresh()
            return await self._dependency(package, pattern)

    async def locate(self, packages: Sequence[str], *, closure: bool = False) -> list[str]:
        """Returns the file names, with versions, of packages; with ``closure`` also of all they depend on."""
        output = await self._get(packages, closure=closure, what="looking up packages", extra=["--print-uris"])
        return sorted(unquote(name) for name in _URI_LINE.findall(output))

    async def unpack(self, packages: Sequence[str], target: Path, *, closure: bool = False) -> None:
        """Downloads packages and unpacks them into the directory ``target``, one over the other."""
        archives = _archive_directory(self._build.directory)
        self._build.progress(_PHASE, f"downloading {packages[0]}")
        try:
            await self._get(packages, closure=closure, what="downloading packages", cwd=archives)
        except EnvironmentBuildFailed:
            # The lists name versions that the mirror has replaced since.
            await self._refresh()
            await self._get(packages, closure=closure, what="downloading packages", cwd=archives)
        await anyio.Path(target).mkdir(parents=True, exist_ok=True)
        files = _archived(archives)
        for number, file in enumerate(files):
            self._build.progress(_PHASE, f"unpacking {file.name.split('_')[0]}", number / len(files))
            await self._build.run(["dpkg-deb", "-x", str(file), str(target)], what="unpacking packages")
            file.unlink()

    async def _dependency(self, package: str, pattern: str) -> str:
        argv = ["apt-cache", *self._options, "depends", "--important", package]
        output = await self._build.run(argv, what=f"looking up {package}")
        names = re.findall(rf"^ +(?:Pre)?Depends: ({pattern})$", output, re.MULTILINE)
        if not names:
            raise EnvironmentBuildFailed(
                f"apt knows no package {package} that depends on {pattern}",
                hint="the host's apt sources must hold Debian 12 or later",
            )
        return str(names[0])

    async def _get(
        self,
        packages: Sequence[str],
        *,
        closure: bool,
        what: str,
        extra: Sequence[str] = (),
        cwd: Path | None = None,
    ) -> str:
        options = [*self._options, "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true", *extra]
        if closure:
            # Against an empty status file nothing counts as installed, so apt finds every dependency.
            status = self._build.directory / "status"
            status.touch()
            archives = cwd or self._build.directory
            options += ["-o", f"Dir::State::status={status}", "-o", f"Dir::Cache::archives={archives}"]
            options += ["--yes", "--no-install-recommends", "--download-only"]
        argv = ["apt-get", *options, "install" if closure else "download", *packages]
        return await self._build.run(argv, what=what, cwd=cwd, on_line=self._on_line)

    async def _refresh(self) -> None:
        if self._options:  # already ours and fresh
            return
        self._build.progress(_PHASE, "fetching package lists")
        for name in ("lists/partial", "cache/archives/partial"):
            (self._private / name).mkdir(parents=True, exist_ok=True)
        self._options = [
            *("-o", f"Dir::State::Lists={self._private / 'lists'}"),
            *("-o", f"Dir::Cache={self._private / 'cache'}"),
        ]
        options = [*self._options, "-o", "APT::Sandbox::User=root"]
        await self._build.run(["apt-get", *options, "update"], what="fetching package lists", on_line=self._on_line)

    def _on_line(self, line: str) -> None:
        if line.startswith("Get:"):
            self._build.progress(_PHASE, line.partition(" ")[2])


def _archive_directory(parent: Path) -> Path:
    directory = parent / "archives"
    (directory / "partial").mkdir(parents=True, exist_ok=True)  # apt insists on it
    return directory


def _archived(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.deb"))
