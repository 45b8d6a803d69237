"""What happens during a call, as progress notifications."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio

from pyro_async.calls import CallEvent
from pyro_async.operations import ExecOutput, ExecStarted, Progress

__all__ = ["MESSAGE_CHARS", "progress_feed"]

#: Seconds between notifications: often enough for eyes, and no load however fast a command prints.
_INTERVAL: Final = 0.1
#: Characters of one notification; what is beyond them is in the result only.
MESSAGE_CHARS: Final = 4000

Report = Callable[[float, float | None, str | None], Awaitable[None]]


@asynccontextmanager
async def progress_feed(report: Report) -> AsyncIterator[Callable[[CallEvent], None]]:
    """Yields a function that takes a call's events; leaving the context sends what was not sent yet.

    Never makes the operation wait for the client: what comes faster than it may be sent is joined, its tail kept.

    Args:
        report: sends progress, total and message.
    """
    feed = _Feed(report)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run, name="progress")
        yield feed.take
        feed.close()


class _Feed:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._pending = ""
        self._news = anyio.Event()
        self._closed = anyio.Event()
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": decoder("replace"), "stderr": decoder("replace")}

    def take(self, event: CallEvent) -> None:
        if isinstance(event, ExecOutput):
            text = self._decoders[event.stream].decode(event.data)
        elif isinstance(event, Progress):
            share = "" if event.fraction is None else f" ({event.fraction:.0%})"
            text = f"{event.phase}{share}: {event.detail}\n" if event.detail else f"{event.phase}{share}\n"
        elif isinstance(event, ExecStarted):
            text = f"started exec_id {event.exec_id}\n"
        else:
            return  # nothing to tell, or nothing that a tool asks for
        if text:
            self._pending = (self._pending + text)[-MESSAGE_CHARS:]
            self._news.set()

    def close(self) -> None:
        self._closed.set()
        self._news.set()

    async def run(self) -> None:
        sent = 0
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            if self._pending:
                message, self._pending = self._pending, ""
                sent += 1
                await self._report(sent, None, message)
            elif self._closed.is_set():
                return
            if self._closed.is_set():
                self._news.set()
            else:
                with anyio.move_on_after(_INTERVAL):
                    await self._closed.wait()
