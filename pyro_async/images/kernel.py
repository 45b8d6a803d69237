"""The guest's kernel: Debian's cloud kernel, taken out of its package.

An artifact holds ``vmlinux`` (uncompressed ELF), ``release``, and ``modules/``: uncompressed, flat, with a modules.dep.
"""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from pyro_async.errors import EnvironmentBuildFailed
from pyro_async.images.modules import dependencies, dependency_table, find_modules, load_order, module_name, read_module
from pyro_async.images.packages import Packages
from pyro_async.images.payload import extract_kernel
from pyro_async.images.workbench import Build

__all__ = ["KERNEL_MODULES", "find_kernel_package", "unpack_kernel"]

_META_PACKAGE = "linux-image-cloud-amd64"
_PACKAGE = r"linux-image-\d\S*"

KERNEL_MODULES = (
    *("virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport"),
    *("overlay", "squashfs", "erofs"),
    *("dummy", "tun", "nf_tables", "nft_redir", "nft_chain_nat"),
)
"""What a guest may load; the kernel has the rest that it needs built in."""


async def find_kernel_package(packages: Packages) -> str:
    """Returns the name of the package that holds today's kernel."""
    return await packages.dependency(_META_PACKAGE, _PACKAGE)


async def unpack_kernel(build: Build, packages: Packages, package: str, target: Path) -> None:
    """Makes the directory ``target`` with kernel and modules from ``package``."""
    root = build.directory / "kernel-root"
    await packages.unpack([package], root)
    build.progress("kernel", "extracting the kernel and its modules")
    await to_thread.run_sync(_extract, root, target)


def _extract(root: Path, target: Path) -> None:
    images = sorted((root / "boot").glob("vmlinuz-*"))
    if not images:
        raise EnvironmentBuildFailed("the kernel package holds no kernel")
    release = images[0].name.removeprefix("vmlinuz-")
    target.mkdir()
    (target / "vmlinux").write_bytes(extract_kernel(images[0].read_bytes()))
    (target / "release").write_text(f"{release}\n")

    found = find_modules(root)
    built_in_list = next(root.rglob("modules.builtin"), None)
    lines = built_in_list.read_text().split() if built_in_list else []
    built_in = frozenset(module_name(Path(line).name) for line in lines)
    content = {name: read_module(found[name]) for name in _closure(found, built_in)}
    needs = {name: dependencies(module) for name, module in content.items()}
    (target / "modules").mkdir()
    for name, module in content.items():
        (target / "modules" / f"{name}.ko").write_bytes(module)
    (target / "modules" / "modules.dep").write_text(dependency_table(content, needs, built_in))


def _closure(found: dict[str, Path], built_in: frozenset[str]) -> list[str]:
    # Only what is reached is read: a package holds thousands of modules.
    needs: dict[str, list[str]] = {}
    pending = list(KERNEL_MODULES)
    while pending:
        name = pending.pop()
        if name in found and name not in needs:
            needs[name] = dependencies(read_module(found[name]))
            pending += needs[name]
    return load_order(KERNEL_MODULES, needs, built_in)
