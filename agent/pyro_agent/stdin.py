"""The writing end of a command's standard input."""

from __future__ import annotations

import os

import anyio

__all__ = ["Stdin"]


class Stdin:
    """Feeds a command. Once it no longer reads, input is accepted and dropped, as a shell's pipe would lose it.

    Args:
        fd: writing end of a pipe, non-blocking; owned by this object.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        #: Bytes taken over so far: whoever feeds after a lost link goes on from here.
        self.offset = 0

    async def write(self, data: bytes) -> None:
        """Writes all of ``data``; waits while the pipe is full. When cancelled, ``offset`` says how far it came."""
        view = memoryview(data)
        while view:
            try:
                written = os.write(self._fd, view) if self._fd >= 0 else len(view)
            except BlockingIOError:
                try:
                    await anyio.wait_writable(self._fd)
                except anyio.ClosedResourceError:
                    continue
            except BrokenPipeError:
                self.close()
            else:
                self.offset += written
                view = view[written:]

    def close(self) -> None:
        """The command reads end of file. Closing twice does nothing."""
        if self._fd >= 0:
            anyio.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
