"""The async iterator of a running command's events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from pyro_async.calls import Call, CallEvent
from pyro_async.operations import ExecEvent, ExecOutput, ExecResult, ExecStarted, OutputDropped
from pyro_async.streams import OperationStream

__all__ = ["ExecStream", "byte_source"]


class ExecStream(OperationStream[ExecEvent]):
    """Events of one command; the last one is its :class:`~pyro_async.operations.ExecResult`.

    Leaving the block kills a command that it runs and returns once its tree is gone; one to which it is only attached
    is left alone.
    """

    def __init__(self, run: Callable[[Call], Awaitable[ExecResult]], tasks: TaskGroup) -> None:
        async def deliver(send: Callable[[ExecEvent], Awaitable[None]]) -> None:
            async def emit(event: CallEvent) -> None:
                if isinstance(event, ExecStarted | ExecOutput | OutputDropped):
                    await send(event)

            await send(await run(Call(emit)))

        super().__init__(deliver, tasks)


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
