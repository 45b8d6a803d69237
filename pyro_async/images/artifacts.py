"""A directory of finished artifacts: each one checksummed, published by a rename, found by key or by a named reference.

``KEY/manifest.json`` and the files beside it never change once they are there. ``refs/NAME`` holds a key and is
replaced by rename.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

__all__ = ["ArtifactFile", "Artifacts", "Inputs", "Manifest", "digest_file", "digest_of"]

_MANIFEST = "manifest.json"
_REFS = "refs"
_BLOCK = 1 << 16


Inputs = dict[str, str | list[str]]
"""What an artifact was made from, by name: versions, checksums, options."""


class ArtifactFile(msgspec.Struct, frozen=True):
    """One file of an artifact, by its relative path.

    Size and time serve the cheap check, the checksum of :func:`digest_file` the full one.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    checksum: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact is.

    Attributes:
        created_at: seconds since the epoch.
    """

    inputs: Inputs
    created_at: float
    files: list[ArtifactFile]


def digest_of(inputs: object) -> str:
    """Returns the sha256 of plain data, the same for equal data."""
    return hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()


def digest_file(path: Path) -> str:
    """Returns a checksum of a file: the sha256 over its size and its blocks that are not zero, with their positions.

    So a sparse image costs what it holds, and a copy that lost its holes has the same checksum. Blocks, 1 s a GB.
    """
    digest = hashlib.sha256()
    zeros = bytes(_BLOCK)
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(b"%d\n" % size)
        position = 0
        while position < size:
            try:
                data = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole is left
            position = data - data % _BLOCK
            block = os.pread(stream.fileno(), _BLOCK, position)
            if block != zeros[: len(block)]:
                digest.update(b"%d\n" % position)
                digest.update(block)
            position += _BLOCK
    return digest.hexdigest()


class Artifacts:
    """One directory of artifacts. All methods block for the time of a few file operations unless they say more."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / key

    def keys(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if (entry / _MANIFEST).is_file())

    def manifest(self, key: str) -> Manifest | None:
        """Returns the artifact's manifest, or None if there is no such artifact or its manifest is damaged."""
        try:
            return msgspec.json.decode((self.path(key) / _MANIFEST).read_bytes(), type=Manifest)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None

    def damage(self, key: str, *, deep: bool = False) -> str | None:
        """Returns what is wrong with an artifact, or None.

        The quick check compares sizes and times; ``deep`` reads everything and compares checksums.
        """
        manifest = self.manifest(key)
        if manifest is None:
            return f"{self.path(key)} has no readable manifest"
        for file in manifest.files:
            path = self.path(key) / file.path
            try:
                state = path.stat()
            except OSError:
                return f"{path} is missing"
            if (state.st_size, state.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
                return f"{path} was changed after it was made"
            if deep and digest_file(path) != file.checksum:
                return f"{path} is damaged: its checksum is wrong"
        return None

    def intact(self, key: str | None) -> Manifest | None:
        """Returns the manifest of an artifact that is there and passes the quick check."""
        return self.manifest(key) if key is not None and self.damage(key) is None else None

    def publish(self, source: Path, key: str, inputs: Inputs) -> None:
        """Makes the directory ``source`` the artifact ``key``: writes its manifest, syncs all of it, renames it.

        An intact artifact of that key stays as it is; a damaged one is replaced. Reads and syncs everything.
        """
        if self.intact(key):
            return
        paths = sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
        files = [
            ArtifactFile(str(path.relative_to(source)), state.st_size, state.st_mtime_ns, digest_file(path))
            for path in paths
            for state in [path.stat()]
        ]
        manifest = Manifest(inputs=inputs, created_at=time.time(), files=files)
        (source / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        for path in [*paths, source / _MANIFEST, *(path for path in source.rglob("*") if path.is_dir()), source]:
            if not path.is_symlink():
                _sync(path)
        self.root.mkdir(parents=True, exist_ok=True)
        self.remove(key)
        source.rename(self.path(key))
        _sync(self.root)

    def remove(self, key: str) -> int:
        """Removes an artifact if it is there; at no moment does a part of it look like a whole. Returns bytes freed."""
        path = self.path(key)
        if not path.exists():
            return 0
        freed = sum(item.lstat().st_blocks * 512 for item in path.rglob("*") if item.lstat().st_nlink == 1)
        (path / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
        return freed

    def resolve(self, name: str) -> str | None:
        """Returns the key a reference holds."""
        try:
            return self._ref(name).read_text().strip() or None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def refs(self) -> dict[str, str]:
        """Returns all references and their keys."""
        directory = self.root / _REFS
        names = [unquote(path.name) for path in sorted(directory.iterdir())] if directory.is_dir() else []
        return {name: key for name in names if not name.startswith(".") and (key := self.resolve(name))}

    def refer(self, name: str, key: str) -> None:
        """Points a reference at a key, in one step."""
        target = self._ref(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{secrets.token_hex(8)}")
        temporary.write_text(f"{key}\n")
        _sync(temporary)
        temporary.rename(target)
        _sync(target.parent)

    def forget(self, name: str) -> None:
        """Removes a reference; what it pointed at stays."""
        self._ref(name).unlink(missing_ok=True)

    def _ref(self, name: str) -> Path:
        return self.root / _REFS / quote(name, safe=":@+")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
