"""Kernel modules: which ones are wanted, and what must be loaded before them.

A kernel *package* has no modules.dep (its postinst makes that), so dependencies are read from the modules themselves.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyro_async.errors import EnvironmentBuildFailed

__all__ = ["dependencies", "dependency_table", "find_modules", "load_order", "module_name", "read_module"]

_SUFFIX = re.compile(r"\.ko(\.xz)?$")


def module_name(file_name: str) -> str:
    """Returns a module's name as the kernel spells it: ``virtio-rng.ko.xz`` is ``virtio_rng``."""
    return _SUFFIX.sub("", file_name).replace("-", "_")


def find_modules(directory: Path) -> dict[str, Path]:
    """Returns every module file below ``directory`` by name."""
    return {module_name(path.name): path for path in directory.rglob("*.ko*") if _SUFFIX.search(path.name)}


def read_module(path: Path) -> bytes:
    """Returns the module's ELF content, decompressed."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def dependencies(module: bytes) -> list[str]:
    """Returns the names a module's ``.modinfo`` lists as loaded before it."""
    match = re.search(rb"\0depends=([\w,-]*)\0", module)
    return [module_name(name) for name in match[1].decode().split(",") if name] if match else []


def load_order(wanted: Iterable[str], needs: Mapping[str, Iterable[str]], built_in: frozenset[str]) -> list[str]:
    """Returns ``wanted`` and all they need, each after what it needs; what is built into the kernel is left out.

    Raises :class:`~pyro_async.errors.EnvironmentBuildFailed` if a module is neither in ``needs`` nor built in, or if
    modules need each other.
    """
    order: dict[str, None] = {}
    entered: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in built_in:
            return
        if name in entered:
            raise EnvironmentBuildFailed(f"kernel module {name} needs itself")
        if name not in needs:
            raise EnvironmentBuildFailed(f"the kernel package has no module {name}")
        entered.add(name)
        for needed in needs[name]:
            visit(needed)
        order[name] = None

    for name in wanted:
        visit(name)
    return list(order)


def dependency_table(names: Iterable[str], needs: Mapping[str, Iterable[str]], built_in: frozenset[str]) -> str:
    """Returns a ``modules.dep`` for modules that lie in one directory: what a module needs, last to load first."""
    lines = []
    for name in names:
        needed = load_order([name], needs, built_in)[:-1]
        lines.append(" ".join([f"{name}.ko:", *(f"{other}.ko" for other in reversed(needed))]) + "\n")
    return "".join(lines)
