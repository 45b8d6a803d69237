"""Third-party Python packages of the guest, in the form its own Python needs, whatever Python runs here."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from pyro_async.images.workbench import Build

__all__ = ["download_wheels", "guest_requirements"]

_REQUIREMENTS = ("msgspec", "anyio", "idna", "typing_extensions")
"""anyio's own requirements are spelled out: pip judges their conditions by the Python it runs in."""


def guest_requirements() -> list[str]:
    """Returns what the guest's Python gets: the very versions that are in use here, where they are installed."""
    pinned = []
    for name in _REQUIREMENTS:
        try:
            pinned.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pinned.append(name)
    return pinned


async def download_wheels(build: Build, requirements: Sequence[str], *, python_version: str) -> list[Path]:
    """Downloads wheels for CPython ``python_version`` on x86-64 and returns their files. pip is one of our own
    requirements, so it is there."""
    build.progress("tools", f"downloading {', '.join(requirements)}")
    target = build.directory / "wheels"
    tag = f"cp{python_version.replace('.', '')}"
    machines = [f"manylinux_2_{minor}_x86_64" for minor in (17, 28)] + ["manylinux2014_x86_64"]
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    options += ["--abi", tag, "--abi", "none", *(word for machine in machines for word in ("--platform", machine))]
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--progress-bar=off",
        *options,
        "-d",
        str(target),
    ]
    await build.run([*argv, *requirements], what="downloading Python packages")
    return sorted(target.glob("*.whl"))
