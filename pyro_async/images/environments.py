"""Environments: read-only root filesystems that workspaces start from.

An artifact holds ``base.ext4``; its key is that image's checksum, and references give it names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec
from anyio import to_thread

from pyro_async.errors import InvalidArgument
from pyro_async.images.artifacts import digest_file
from pyro_async.images.ext4 import FakeRoot, make_image
from pyro_async.images.recipes import Recipe
from pyro_async.images.workbench import Build

__all__ = ["BASE_IMAGE", "BuiltEnvironment", "build_recipe", "import_tree"]

BASE_IMAGE = "base.ext4"

_IDENTITY_FILES = ("etc/hostname", "etc/machine-id")
"""What the guest mounts a workspace's identity over."""

_MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp", "workspace")
"""What the guest mounts over, or changes into: there from the start, so that the upper disk need not hold them."""

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_TRIM = (
    "rm -f var/cache/debconf/*-old var/lib/dpkg/*-old var/log/*.log var/log/apt/*; "
    "find usr/share/man usr/share/info usr/share/lintian ! -type d -delete; "
    "find usr/share/doc ! -name copyright ! -type d -delete; "
    "find usr/share/locale -mindepth 1 -maxdepth 1 ! -name 'en*' -exec rm -rf {} +; "
    ": >etc/hostname; : >etc/machine-id; : >etc/resolv.conf; "
    r"printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >etc/hosts"
)
"""Removes what neither apt nor a program in a workspace reads, and what mmdebstrap copies from this host. Licences
stay, and so do empty directories: packages that are installed later expect those of manual pages."""

_STEP = re.compile(r"I: ((?:running apt-get|downloading|extracting|installing|cleaning|creating) .*)")
"""What of mmdebstrap's messages is for people who wait."""


class BuiltEnvironment(msgspec.Struct, frozen=True):
    """A finished environment, to be published before its build ends.

    Attributes:
        directory: what to publish; holds the image.
        digest: the image's checksum, and so the environment's key.
    """

    directory: Path
    digest: str


async def build_recipe(build: Build, recipe: Recipe) -> BuiltEnvironment:
    """Builds an environment from Debian packages. Takes a minute or so."""
    archive = build.directory / "root.tar"
    phase = f"building {recipe.name}"

    def on_line(line: str) -> None:
        if step := _STEP.match(line):
            build.progress(phase, step[1])

    build.progress(phase, "resolving packages")
    options = _keyring_options()
    if recipe.packages:
        options.append(f"--include={','.join(recipe.packages)}")
    # Without root the system is installed in a user namespace, whose root may not enter our private directories: so it
    # is made in the system's own temporary directory.
    root = os.geteuid() == 0
    mode, env = ("root", {"TMPDIR": str(build.directory)}) if root else ("auto", {})
    trim = f'--customize-hook=cd "$1" && {_TRIM}'
    argv = ["mmdebstrap", f"--mode={mode}", "--variant=minbase", *options, trim, recipe.suite, str(archive)]
    await build.run(argv, what=phase, env=env, on_line=on_line)

    build.progress(phase, "unpacking")
    tree = build.directory / "tree"
    tree.mkdir()
    fake_root = FakeRoot(build.directory / "owners")
    unpack = ["tar", "-C", str(tree), "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", str(archive)]
    await build.run(fake_root.command(unpack), what="unpacking the environment")
    archive.unlink()
    return await _make(build, tree, fake_root, phase)


async def import_tree(build: Build, directory: Path, phase: str) -> BuiltEnvironment:
    """Makes an environment from a copy of a directory tree.

    For an ordinary user all files of the tree belong to root in the environment.
    """
    if not await anyio.Path(directory).is_dir():
        raise InvalidArgument(f"{directory} is not a directory")
    tree = build.directory / "tree"
    fake_root = FakeRoot(build.directory / "owners")
    build.progress(phase, "copying")
    copy = ["cp", "-a", "--reflink=auto", "--", f"{directory}/.", str(tree)]
    await build.run(fake_root.command(copy), what="copying the environment")
    return await _make(build, tree, fake_root, phase)


async def _make(build: Build, tree: Path, fake_root: FakeRoot, phase: str) -> BuiltEnvironment:
    if missing := _missing_mount_points(tree):
        await build.run(fake_root.command(["mkdir", "-p", *_below(tree, missing)]), what="adding mount points")
    if missing := _missing_identity_files(tree):
        await build.run(fake_root.command(["touch", *_below(tree, missing)]), what="adding mount points")
    await build.run(fake_root.command(["chmod", "1777", *_below(tree, ["tmp"])]), what="adding mount points")
    build.progress(phase, "making the disk image")
    output = build.directory / "environment"
    output.mkdir()
    await make_image(build, tree, output / BASE_IMAGE, label="pyro-base", fake_root=fake_root)
    build.progress(phase, "taking its checksum")
    return BuiltEnvironment(output, await to_thread.run_sync(digest_file, output / BASE_IMAGE))


def _keyring_options() -> list[str]:
    # Hosts that are not Debian have its keys here rather than among apt's own.
    return [f"--keyring={_KEYRING}"] if _KEYRING.is_file() else []


def _missing_mount_points(tree: Path) -> list[str]:
    return [name for name in _MOUNT_POINTS if not os.path.lexists(tree / name)]


def _missing_identity_files(tree: Path) -> list[str]:
    """A link is not followed: it could lead out of the tree."""
    etc = tree / "etc"
    if etc.is_symlink() or not etc.is_dir():
        return []
    return [name for name in _IDENTITY_FILES if not os.path.lexists(tree / name)]


def _below(tree: Path, names: Sequence[str]) -> list[str]:
    return [str(tree / name) for name in names]
