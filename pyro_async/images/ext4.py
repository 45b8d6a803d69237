"""ext4 images made from directory trees, without mounting anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread

from pyro_async.images.workbench import Build

__all__ = ["TREE_UUID", "FakeRoot", "make_empty_image", "make_image"]

TREE_UUID = "70797230-0000-4000-8000-000000000000"
"""UUID and directory hash seed of every image: equal trees shall give images as equal as mke2fs can make them."""

_BLOCK = 4096
_INODE = 256
_SLACK_BYTES = 8 << 20
_TIME = {"E2FSPROGS_FAKE_TIME": "1", "SOURCE_DATE_EPOCH": "1"}
_FIXED = ["-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-I", str(_INODE), "-m", "0", "-U", TREE_UUID]


class FakeRoot:
    """Lets an ordinary user handle trees whose files belong to many users; does nothing for root.

    Owners, modes and device nodes that only root can make are remembered in a file, and shown to later commands of the
    same instance.
    """

    def __init__(self, state: Path) -> None:
        self._state = state

    def command(self, argv: Sequence[str]) -> list[str]:
        """Returns ``argv`` such that it believes to run as root."""
        if os.geteuid() == 0:
            return list(argv)
        self._state.touch()
        return ["fakeroot", "-i", str(self._state), "-s", str(self._state), "--", *argv]


async def make_image(build: Build, tree: Path, image: Path, *, label: str, fake_root: FakeRoot) -> None:
    """Writes ``tree`` into a new ext4 image without journal, to be mounted read-only: just as large as it must be.

    Raises as :meth:`Build.run <pyro_async.images.workbench.Build.run>`.
    """
    blocks, inodes = await to_thread.run_sync(_measure, tree)
    # Extent and directory index blocks, group descriptors and bitmaps come on top of the data.
    size = int(blocks * _BLOCK * 1.03) + inodes * _INODE + _SLACK_BYTES
    options = ["-O", "^has_journal,^resize_inode", "-L", label, "-N", str(inodes + 64)]
    extended = ["-E", f"hash_seed={TREE_UUID},root_owner=0:0,lazy_itable_init=0"]
    argv = ["mke2fs", *_FIXED, *options, *extended, "-d", str(tree), str(image), f"{size // 1024}k"]
    await build.run(fake_root.command(argv), what="making the disk image", env=_TIME)


async def make_empty_image(build: Build, image: Path, *, label: str, size_gib: int) -> None:
    """Makes an empty sparse ext4 image without journal, owned by root."""
    options = ["-O", "^has_journal", "-L", label, "-E", f"hash_seed={TREE_UUID},root_owner=0:0"]
    argv = ["mke2fs", *_FIXED, *options, str(image), f"{size_gib}G"]
    await build.run(argv, what="making the disk image", env=_TIME)


def _measure(tree: Path) -> tuple[int, int]:
    """Returns the blocks and inodes that the files below ``tree`` take in an image."""
    blocks = inodes = 0
    linked: set[tuple[int, int]] = set()
    pending = [tree]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                state = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif state.st_nlink > 1:
                    if (state.st_dev, state.st_ino) in linked:
                        continue
                    linked.add((state.st_dev, state.st_ino))
                inodes += 1
                blocks += -(-state.st_size // _BLOCK)
    return blocks, inodes
