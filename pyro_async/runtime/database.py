"""What SQLite's failures mean to a user."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from pyro_async.errors import HomeUnusable, HostDiskFull

__all__ = ["translated"]


@contextmanager
def translated() -> Iterator[None]:
    """Raises HostDiskFull or HomeUnusable for what the database cannot do."""
    try:
        yield
    except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
        if "disk is full" in str(error):
            raise HostDiskFull("no space left for pyro's records", hint="free space on the home's disk") from error
        raise HomeUnusable(
            f"pyro's records cannot be used: {error}", hint="move state.db out of the home to start afresh"
        ) from error
