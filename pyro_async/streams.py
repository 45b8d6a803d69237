"""Async iterators of what a running operation tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from pyro_async.errors import LinkLost

__all__ = ["OperationStream"]

E = TypeVar("E")

#: Events that may wait for the reader; with the sizes of data frames this bounds a stream's memory to a few MiB.
_BUFFERED_EVENTS: Final = 8


class OperationStream(Generic[E]):
    """Events of one operation, in order.

    The operation starts with the block or with the first event asked for. :meth:`aclose`, which leaving the block
    calls, cancels one that still runs and returns once that is done.

    Args:
        run: carries the operation out; it is given what takes each event.
        tasks: the client's.
    """

    def __init__(self, run: Callable[[Callable[[E], Awaitable[None]]], Awaitable[object]], tasks: TaskGroup) -> None:
        self._run = run
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._finished = anyio.Event()
        self._started = False
        self._entered = False
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        self._entered = True
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[E]:
        return self

    async def __anext__(self) -> E:
        self._start()
        try:
            return await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._receive.close()
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None
        except anyio.get_cancelled_exc_class():
            if not self._entered:  # nothing else would end the operation then
                await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancels the operation if it still runs and waits until that is done. May be called twice."""
        self._scope.cancel()
        if self._started:
            with anyio.CancelScope(shield=True):  # bounded by the transport's own grace
                await self._finished.wait()
            self._receive.close()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._send, self._receive = anyio.create_memory_object_stream[E](_BUFFERED_EVENTS)
            self._tasks.start_soon(self._pump, name="stream")

    async def _pump(self) -> None:
        try:
            with self._scope:
                await self._run(self._send.send)
        except anyio.BrokenResourceError:
            pass  # closed by the reader
        except anyio.get_cancelled_exc_class():
            self._error = LinkLost("the client was closed")
            self._receive.close()  # for a reader that has just walked away
            raise
        except Exception as error:  # the operation's, or that of the caller's standard input
            self._error = error
        finally:
            self._send.close()
            self._finished.set()
