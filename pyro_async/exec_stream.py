"""The async iterator of a running command's events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup

from pyro_async.calls import Call, CallEvent
from pyro_async.errors import LinkLost
from pyro_async.operations import ExecEvent, ExecResult, Progress

__all__ = ["ExecStream", "byte_source"]

#: Events that may wait for the reader; with the sizes of data frames this bounds a stream's memory to a few MiB.
_BUFFERED_EVENTS: Final = 8


class ExecStream:
    """Events of one command, in order; the last one is its :class:`~pyro_async.operations.ExecResult`.

    The command starts with the block or with the first event asked for. :meth:`aclose`, which leaving the block calls,
    kills a command that still runs and returns once its tree is gone.
    """

    def __init__(self, run: Callable[[Call], Awaitable[ExecResult]], tasks: TaskGroup) -> None:
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

    def __aiter__(self) -> AsyncIterator[ExecEvent]:
        return self

    async def __anext__(self) -> ExecEvent:
        self._start()
        try:
            return await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._receive.close()
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None
        except anyio.get_cancelled_exc_class():
            if not self._entered:  # nothing else would end the command then
                await self.aclose()
            raise

    async def aclose(self) -> None:
        """Kills the command if it still runs and waits until it is gone. May be called twice."""
        self._scope.cancel()
        if self._started:
            with anyio.CancelScope(shield=True):  # bounded by the transport's own grace
                await self._finished.wait()
            self._receive.close()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._send, self._receive = anyio.create_memory_object_stream[ExecEvent](_BUFFERED_EVENTS)
            self._tasks.start_soon(self._pump, name="exec stream")

    async def _pump(self) -> None:
        async def emit(event: CallEvent) -> None:
            if not isinstance(event, Progress):
                await self._send.send(event)

        try:
            with self._scope:
                result = await self._run(Call(emit))
                await self._send.send(result)
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


@asynccontextmanager
async def byte_source(
    stdin: bytes | str | AsyncIterable[bytes] | None,
) -> AsyncGenerator[AsyncIterator[bytes] | None, None]:
    """Standard input in whatever form a caller has it, as an async iterator of bytes.

    Leaving the context closes an async generator: a command that ends early leaves it unfinished.
    """
    if stdin is None:
        yield None
        return
    source: AsyncIterator[bytes]
    if isinstance(stdin, bytes | str):
        source = _once(stdin.encode() if isinstance(stdin, str) else stdin)
    else:
        source = aiter(stdin)
    try:
        yield source
    finally:
        if isinstance(source, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await source.aclose()


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
