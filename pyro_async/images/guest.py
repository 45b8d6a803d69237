"""What every guest boots: kernel, initramfs, tools image, and the pristine upper disk.

Made in layers, each an artifact of its own, so that a changed agent costs seconds and no download:

    guest/kernel/KEY   from one Debian package        guest/python/KEY   Python, its libraries, third-party packages
    guest/image/KEY    from both and our own sources  guest/upper/KEY    an empty disk
"""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
from anyio import to_thread

from pyro_async.images.artifacts import Artifacts, Inputs, digest_file, digest_of
from pyro_async.images.ext4 import make_empty_image
from pyro_async.images.initramfs import build_initramfs
from pyro_async.images.kernel import KERNEL_MODULES, find_kernel_package, unpack_kernel
from pyro_async.images.packages import Packages
from pyro_async.images.progress import Report
from pyro_async.images.sources import GuestSources
from pyro_async.images.tools import assemble_python, assemble_tools, find_python
from pyro_async.images.wheels import guest_requirements
from pyro_async.images.workbench import Build, Workbench

__all__ = ["UPPER_SIZE_GIB", "GuestImages", "GuestStore"]

UPPER_SIZE_GIB = 16
"""Size of every workspace's disk as the guest sees it; a template and its clones must agree on it."""

_FORMAT = "1"
"""Raised when the way of making these artifacts changes."""

_GUEST = "guest"
_UPPER = "upper"
_UPPER_IMAGE = "upper.ext4"


class GuestImages(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM needs besides its disks.

    Attributes:
        kernel: uncompressed ELF kernel.
        initramfs: mounts the tools image and starts the agent.
        tools: read-only ext4 image.
        key: the same as long as all of them are the same.
    """

    kernel: Path
    initramfs: Path
    tools: Path
    key: str


class GuestStore:
    """The ``guest`` directory of a home."""

    def __init__(self, home: Path, workbench: Workbench) -> None:
        self._workbench = workbench
        self._lists = home / "apt"
        self._kernels = Artifacts(home / "guest" / "kernel")
        self._pythons = Artifacts(home / "guest" / "python")
        self._images = Artifacts(home / "guest" / "image")
        self._uppers = Artifacts(home / "guest" / "upper")

    def current(self) -> GuestImages | None:
        """Returns the images for our present sources, or None if they have to be made. Blocks for a millisecond."""
        key = self._images.resolve(_reference(GuestSources.find()))
        return self._guest_images(key) if key and self._images.intact(key) else None

    def upper_template(self) -> Path | None:
        """Returns the pristine upper disk, or None if it has to be made."""
        key = self._uppers.resolve(_UPPER)
        return self._uppers.path(key) / _UPPER_IMAGE if key and self._uppers.intact(key) else None

    async def ensure(self, report: Report, *, refresh: bool) -> GuestImages:
        """Returns the images, making what is missing; see :meth:`ImageStore.ensure_guest`."""
        images = self.current()
        if images and self.upper_template() and not refresh:
            return images
        async with self.exclusive(report):
            images = self.current()
            if images is None or refresh:
                async with self._workbench.build(_GUEST, report) as build:
                    images = await self._make(build, GuestSources.find(), refresh=refresh)
            if self.upper_template() is None:
                async with self._workbench.build(_UPPER, report) as build:
                    await self._make_upper(build)
        return images

    def exclusive(self, report: Report) -> AbstractAsyncContextManager[None]:
        """Keeps all other makers and removers of guest images away."""
        return self._workbench.exclusive(_GUEST, report)

    def damage(self, *, deep: bool) -> list[str]:
        stores = (self._kernels, self._pythons, self._images, self._uppers)
        problems = [store.damage(key, deep=deep) for store in stores for key in store.keys()]  # noqa: SIM118
        return [problem for problem in problems if problem]

    def prune(self, in_use: frozenset[str]) -> dict[str, int]:
        """Removes what neither ``in_use`` nor the present sources need; returns keys and bytes freed."""
        current = self._images.resolve(_reference(GuestSources.find()))
        for name in self._images.refs():
            if self._images.resolve(name) != current:
                self._images.forget(name)
        removed: dict[str, int] = {}
        for store in (self._kernels, self._pythons, self._images, self._uppers):
            keep = in_use | set(store.refs().values())
            removed |= {key: store.remove(key) for key in store.keys() if key not in keep}  # noqa: SIM118
        return removed

    async def _make(self, build: Build, sources: GuestSources, *, refresh: bool) -> GuestImages:
        packages = Packages(build, self._lists)
        kernel = None if refresh else self._present(self._kernels, _kernel_reference())
        python = None if refresh else self._present(self._pythons, _python_reference())
        kernel = kernel or await self._make_kernel(build, packages)
        python = python or await self._make_python(build, packages)
        inputs: Inputs = {"format": _FORMAT, "kernel": kernel, "python": python, "sources": sources.digest}
        key = digest_of(inputs)
        if not self._images.intact(key):
            output = build.directory / "image"
            output.mkdir()
            kernel_tree, python_tree = self._kernels.path(kernel), self._pythons.path(python)
            os.link(kernel_tree / "vmlinux", output / "vmlinux")
            initramfs = await to_thread.run_sync(build_initramfs, kernel_tree, python_tree / "bin" / "busybox")
            (output / "initramfs.cpio").write_bytes(initramfs)
            await assemble_tools(build, python_tree, kernel_tree, sources.files, output / "tools.ext4")
            await to_thread.run_sync(self._images.publish, output, key, inputs)
        self._images.refer(_reference(sources), key)
        return self._guest_images(key)

    async def _make_kernel(self, build: Build, packages: Packages) -> str:
        package = await find_kernel_package(packages)
        inputs: Inputs = {
            "format": _FORMAT,
            "modules": list(KERNEL_MODULES),
            "package": await packages.locate([package]),
        }
        key = digest_of(inputs)
        if not self._kernels.intact(key):
            output = build.directory / "kernel"
            await unpack_kernel(build, packages, package, output)
            await to_thread.run_sync(self._kernels.publish, output, key, inputs)
        self._kernels.refer(_kernel_reference(), key)
        return key

    async def _make_python(self, build: Build, packages: Packages) -> str:
        python = await find_python(packages)
        names = [f"{python}-minimal", f"lib{python}-stdlib"]
        files = [*await packages.locate(names, closure=True), *await packages.locate(["busybox-static"])]
        wheels = guest_requirements()
        inputs: Inputs = {"format": _FORMAT, "packages": files, "wheels": wheels}
        key = digest_of(inputs)
        if not self._pythons.intact(key):
            output = build.directory / "python"
            await assemble_python(build, packages, python, wheels, output)
            await to_thread.run_sync(self._pythons.publish, output, key, inputs)
        self._pythons.refer(_python_reference(), key)
        return key

    async def _make_upper(self, build: Build) -> None:
        output = build.directory / _UPPER
        output.mkdir()
        await make_empty_image(build, output / _UPPER_IMAGE, label="pyro-upper", size_gib=UPPER_SIZE_GIB)
        digest = await to_thread.run_sync(digest_file, output / _UPPER_IMAGE)
        inputs: Inputs = {"format": _FORMAT}
        await to_thread.run_sync(self._uppers.publish, output, digest, inputs)
        self._uppers.refer(_UPPER, digest)

    def _present(self, store: Artifacts, reference: str) -> str | None:
        key = store.resolve(reference)
        return key if store.intact(key) else None

    def _guest_images(self, key: str) -> GuestImages:
        directory = self._images.path(key)
        return GuestImages(
            kernel=directory / "vmlinux",
            initramfs=directory / "initramfs.cpio",
            tools=directory / "tools.ext4",
            key=key,
        )


# A reference is named after what we know without asking apt: so nothing is asked when it is there.


def _reference(sources: GuestSources) -> str:
    wanted = (_FORMAT, _kernel_reference(), _python_reference(), sources.digest)
    return f"guest-{digest_of(wanted)[:16]}"


def _kernel_reference() -> str:
    return f"kernel-{digest_of((_FORMAT, KERNEL_MODULES))[:16]}"


def _python_reference() -> str:
    return f"python-{digest_of((_FORMAT, guest_requirements()))[:16]}"
