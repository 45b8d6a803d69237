"""Cloning of disk images: cost follows the data they hold, not their size."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

__all__ = ["clone_file"]

_FICLONE = 0x40049409
"""ioctl that makes a file share another's extents, from linux/fs.h; btrfs, xfs, bcachefs and zfs have it."""

_NO_REFLINK = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS}
_COPY_LIMIT = 1 << 30


def clone_file(source: Path, target: Path, *, sync: bool = False) -> None:
    """Makes ``target`` a copy of ``source``, which must not change meanwhile.

    Extents are shared where the filesystem can; otherwise only the data is copied and holes stay holes. The target's
    mode is 0600. With ``sync`` the data is on disk on return (the caller still has to sync the directory). Blocks; on
    any error the target is removed again. Raises FileExistsError if the target exists, OSError otherwise.
    """
    with source.open("rb") as reader:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _clone(reader.fileno(), descriptor)
            if sync:
                os.fsync(descriptor)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _clone(source: int, target: int) -> None:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        _copy_extents(source, target)


def _copy_extents(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, position)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            copied = os.copy_file_range(source, target, min(end - start, _COPY_LIMIT), start, start)
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
            # Some filesystems know no in-kernel copy, least of all from one to another.
            copied = os.pwrite(target, os.pread(source, min(end - start, 1 << 20), start), start)
        if copied == 0:  # the source was truncated under us
            raise OSError(errno.EIO, "the file shrank while it was copied")
        start += copied
