"""Users and groups of the guest, from /etc/passwd and /etc/group.

Parsed here because the agent's own C library has no name service modules for the guest's root.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pyro_async.errors import InvalidArgument

__all__ = ["Account", "Accounts"]

_MAX_ID = 0xFFFF_FFFE  # 2**32 - 1 means "unchanged" to the kernel


class Account(NamedTuple):
    """Whom a command runs as."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...]


class _Table:
    """The colon-separated records of one file, read again only when the file changed."""

    def __init__(self, path: str, fields: int) -> None:
        self._path = path
        self._fields = fields
        self._stamp: tuple[int, int, int] | None = None
        self._rows: list[list[str]] = []

    def rows(self) -> list[list[str]]:
        try:
            status = os.stat(self._path)
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp != self._stamp:
                with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                    rows = [line.rstrip("\n").split(":") for line in file]
                self._rows = [row for row in rows if len(row) >= self._fields and row[2].isdecimal()]
                self._stamp = stamp
        except OSError:
            self._rows = []
            self._stamp = None
        return self._rows


class Accounts:
    """Looks up users.

    Args:
        etc: directory of ``passwd`` and ``group``; either may be missing or malformed.
    """

    def __init__(self, etc: str = "/etc") -> None:
        self._passwd = _Table(f"{etc}/passwd", 7)
        self._group = _Table(f"{etc}/group", 4)

    def find(self, user: str) -> Account:
        """Returns the account for a name or ``uid[:gid]``; numeric ids need not be listed anywhere.

        Raises:
            InvalidArgument: no such user, or not a valid id.
        """
        uid, colon, gid = user.partition(":")
        rows = self._passwd.rows()
        if not uid.isdecimal():
            row = next((row for row in rows if row[0] == user), None)
            if row is not None:
                return self._from_row(row)
            if user == "root":  # exists even in a root without /etc/passwd
                return Account("root", 0, 0, "/root", "/bin/sh", (0,))
            raise InvalidArgument(f"no user {user!r} in the guest", hint="use a name from its /etc/passwd or uid[:gid]")
        if (colon and not gid.isdecimal()) or int(uid) > _MAX_ID or (colon and int(gid) > _MAX_ID):
            raise InvalidArgument(f"{user!r} is not a valid uid[:gid]")
        row = next((row for row in rows if int(row[2]) == int(uid)), None)
        if row is not None:
            account = self._from_row(row)
            return account._replace(gid=int(gid), groups=(int(gid),)) if colon else account
        group = int(gid) if colon else int(uid)
        return Account(uid, int(uid), group, "/", "/bin/sh", (group,))

    def _from_row(self, row: list[str]) -> Account:
        name, uid = row[0], int(row[2])
        gid = int(row[3]) if row[3].isdecimal() else uid
        groups = {gid, *(int(group[2]) for group in self._group.rows() if name in group[3].split(","))}
        return Account(name, uid, gid, row[5] or "/", row[6] or "/bin/sh", tuple(sorted(groups)))
