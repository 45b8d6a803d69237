"""What the sync client stands on: an event loop in a thread of its own, which runs the async client."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from pyro_async.client import AsyncPyro
from pyro_async.errors import PyroError
from pyro_async.streams import OperationStream

__all__ = ["BlockingClient", "BlockingStream"]

T = TypeVar("T")


class BlockingClient:
    """Base of the sync client; see :class:`~pyro_async.client.AsyncPyro` for the arguments.

    An interrupt while a method blocks cancels the operation, as cancelling the async method does.
    """

    def __init__(self, home: str | os.PathLike[str] | None = None, *, embedded: bool = False) -> None:
        self._home = home
        self._embedded = embedded
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._client: AsyncPyro | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            client = AsyncPyro(self._home, embedded=self._embedded)
            stack.enter_context(portal.wrap_async_context_manager(client))
            self._portal, self._client = portal, client
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._portal = self._client = None
        return self._stack.__exit__(kind, error, traceback)

    def _open(self) -> tuple[BlockingPortal, AsyncPyro]:
        if self._portal is None or self._client is None:
            raise PyroError("the client is not open", hint="use it as `with Pyro() as client`")
        return self._portal, self._client

    def _run(self, method: Callable[[AsyncPyro], Awaitable[T]]) -> T:
        portal, client = self._open()

        async def call() -> T:
            return await method(client)

        future = portal.start_task_soon(call)
        try:
            return future.result()
        except BaseException:  # an interrupt of this thread, or the operation's own error
            future.cancel()
            raise

    def _stream(self, method: Callable[[AsyncPyro], OperationStream[T]]) -> BlockingStream[T]:
        portal, client = self._open()
        return BlockingStream(portal, portal.call(method, client))


class BlockingStream(Generic[T]):
    """Iterates over an operation's events; leaving the block, or :meth:`close`, cancels one that still runs."""

    def __init__(self, portal: BlockingPortal, stream: OperationStream[T]) -> None:
        self._portal = portal
        self._stream = stream

    def __enter__(self) -> Self:
        self._portal.call(self._stream.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._portal.call(self._stream.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Cancels the operation if it still runs and waits until that is done."""
        self._portal.call(self._stream.aclose)
