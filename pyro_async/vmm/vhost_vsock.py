"""Finding and fetching ``vhost-device-vsock``, which gives a QEMU guest a real vsock without the host's kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import anyio

from pyro_async.errors import SetupRequired

__all__ = ["fetch_vhost_device_vsock", "find_vhost_device_vsock"]

_NAME = "vhost-device-vsock"
_SUITE = "forky"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def find_vhost_device_vsock(directory: Path) -> Path | None:
    """The binary in ``directory`` or else on PATH; None if it is not installed."""
    found = shutil.which(_NAME, path=directory) or shutil.which(_NAME)
    return Path(found) if found else None


async def fetch_vhost_device_vsock(directory: Path) -> Path:
    """Puts the binary of Debian's package into ``directory`` and returns its path; needs no root.

    The package is in newer suites than the one this program supports (its binary runs on glibc 2.34 or newer), so it
    is downloaded with apt state of its own, from the archive that the host's own sources name: nothing of the host
    changes, and apt verifies signature and checksum. Takes seconds; replaces an existing binary atomically; raises
    :class:`~pyro_async.errors.SetupRequired`.
    """
    try:
        async with anyio.TemporaryDirectory(prefix="pyro-apt-") as name:
            scratch = anyio.Path(name)
            signed_by = f"[signed-by={_KEYRING}] " if await anyio.Path(_KEYRING).exists() else ""
            await (scratch / "sources.list").write_text(f"deb {signed_by}{await _archive_uri()} {_SUITE} main\n")
            for state in ("lists/partial", "cache/archives/partial"):
                await (scratch / state).mkdir(parents=True)
            options = (
                f"-oDir::Etc::sourcelist={name}/sources.list",
                "-oDir::Etc::sourceparts=-",
                f"-oDir::State::Lists={name}/lists",
                f"-oDir::Cache={name}/cache",
                "-oAcquire::Languages=none",
                # As root apt would download as a user who cannot enter our private directory.
                *(["-oAPT::Sandbox::User=root"] if os.geteuid() == 0 else []),
            )
            await _run(["apt-get", *options, "-q", "update"], cwd=name)
            await _run(["apt-get", *options, "-q", "download", _NAME], cwd=name)
            packages = [str(package) async for package in scratch.glob("*.deb")]
            await _run(["dpkg-deb", "-x", *packages, "unpacked"], cwd=name)
            await anyio.Path(directory).mkdir(parents=True, exist_ok=True)
            new = directory / f".{_NAME}.{os.getpid()}"
            await anyio.to_thread.run_sync(shutil.copy2, scratch / "unpacked/usr/bin" / _NAME, new)
            return Path(await anyio.Path(new).replace(directory / _NAME))
    except OSError as error:
        raise SetupRequired(f"cannot install {_NAME}: {error}") from error


async def _archive_uri() -> str:
    """The Debian archive that this host already uses, as apt itself understands the host's sources."""
    output = await _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"], cwd="/"
    )
    # A host also names its security archive, which has other suites.
    for uri in output.splitlines():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise SetupRequired(
        f"cannot install {_NAME}: this host's apt sources name no Debian archive",
        hint=f"install {_NAME} yourself and put it on PATH",
    )


async def _run(command: Sequence[str], *, cwd: str) -> str:
    try:
        result = await anyio.run_process(command, cwd=cwd, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        last_words = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {error.returncode}"]
        raise SetupRequired(
            f"cannot install {_NAME}: {command[0]}: {last_words[0]}",
            hint=f"install {_NAME} yourself and put it on PATH",
        ) from error
    return result.stdout.decode(errors="replace")
