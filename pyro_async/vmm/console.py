"""What a guest printed on its console, kept in bounded space and safe to show on a terminal."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

__all__ = ["ConsoleLog", "printable"]

TAIL_BYTES = 64 * 1024
FILE_BYTES = 256 * 1024

_ESCAPE_SEQUENCE = re.compile(
    r"""\x1b(?: \[ [0-?]* [ -/]* [@-~]?              # CSI: colours, cursor movement
              | [\]PX^_] [^\x07\x1b]* (?: \x07 | \x1b\\ )? # OSC and other strings: titles, clipboard
              | [ -/]* [0-~]? )                        # two-character sequences
    """,
    re.VERBOSE,
)


class ConsoleLog:
    """The last 64 KiB of a console in memory, and a file of at most 256 KiB for people.

    The file is best effort: output that comes faster than the disk takes it is dropped there, and a full disk must not
    stop anyone from reading the console.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tail = bytearray()
        self._unwritten = bytearray()

    def append(self, data: bytes) -> None:
        """Adds output of the guest. Does not block: :meth:`flush` brings it into the file."""
        for kept in (self._tail, self._unwritten):
            kept += data
            del kept[:-TAIL_BYTES]

    def tail(self, max_bytes: int) -> str:
        """The last ``max_bytes`` as text: valid, without escape sequences and control characters."""
        return printable(bytes(self._tail[-max_bytes:])) if max_bytes > 0 else ""

    async def flush(self) -> None:
        """Appends what came since the last flush to the file, which starts anew with it when it would grow too long.

        One task at a time may call this.
        """
        unwritten, self._unwritten = self._unwritten, bytearray()
        if unwritten:
            await to_thread.run_sync(self._write, bytes(unwritten))

    def _write(self, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(OSError), open(os.open(self._path, flags, 0o600), "ab", buffering=0) as file:
            if file.tell() + len(data) > FILE_BYTES:
                file.truncate(0)
            file.write(data)


def printable(data: bytes) -> str:
    """Decodes hostile bytes into text of which only newline and tab may move a terminal's cursor."""
    text = _ESCAPE_SEQUENCE.sub("", data.decode(errors="replace"))
    return "".join(character for character in text if character in "\n\t" or character.isprintable())
