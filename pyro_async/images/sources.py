"""Our own Python packages that go into the guest: the agent, and of ``pyro_async`` the wire and the errors."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import msgspec

from pyro_async.errors import InternalError

__all__ = ["GuestSources"]

_SHARED = ("__init__.py", "errors.py", "wire")


class GuestSources(msgspec.Struct, frozen=True):
    """Files for the guest: where each goes in its Python library, and where it is here.

    ``digest`` is the sha256 of all names and contents.
    """

    files: list[tuple[str, Path]]
    digest: str

    @classmethod
    def find(cls) -> GuestSources:
        """Finds the packages wherever this installation has them, a checkout or a wheel."""
        return cls.collect(_package("pyro_agent"), _package("pyro_async"))

    @classmethod
    def collect(cls, agent: Path, shared: Path) -> GuestSources:
        """Collects from the directories of the two packages. Blocks for a few milliseconds."""
        chosen = [(agent.name, agent, agent), *((shared.name, shared, shared / name) for name in _SHARED)]
        files = sorted(
            (f"{package}/{path.relative_to(root)}", path)
            for package, root, start in chosen
            for path in ([start] if start.is_file() else start.rglob("*.py"))
        )
        digest = hashlib.sha256()
        for name, path in files:
            content = path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return cls(files, digest.hexdigest())


def _package(name: str) -> Path:
    specification = importlib.util.find_spec(name)
    locations = specification.submodule_search_locations if specification else None
    if not locations:
        raise InternalError(f"this installation of pyro has no package {name}", hint="install it again")
    return Path(next(iter(locations)))
