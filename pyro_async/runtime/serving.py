"""Serves one client's connection: every stream it opens is one operation in a task of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Self

import anyio
from anyio.abc import ByteStream

from pyro_async import __version__
from pyro_async.calls import Call, CallEvent, decode_params
from pyro_async.errors import LinkLost
from pyro_async.operations import OPERATIONS, ExecOutput, Operation
from pyro_async.runtime.embedded import DirectTransport
from pyro_async.wire.codec import Hello, Request
from pyro_async.wire.connection import Cancel, Connection, Data, Eof, Role, Stream
from pyro_async.wire.guest import STDERR, STDOUT

__all__ = ["Control", "serve_client"]

#: Answers requests that are about the daemon itself, not operations.
Control = Callable[[Request], Awaitable[object]]

_CHANNELS: Final = {"stdout": STDOUT, "stderr": STDERR}


async def serve_client(stream: ByteStream, transport: DirectTransport, control: Control) -> None:
    """Serves a client until it disconnects; whatever it started and did not detach is cancelled then."""

    async def handle(stream: Stream, request: Request) -> object:
        if (operation := OPERATIONS.get(request.method)) is not None:
            return await _operate(stream, request, operation, transport)
        return await control(request)

    await Connection(stream, role=Role.SERVER, hello=Hello(software=__version__), handler=handle).run()


async def _operate(stream: Stream, request: Request, operation: Operation, transport: DirectTransport) -> object:
    params = decode_params(request.params, operation.params)

    async def emit(event: CallEvent) -> None:
        if isinstance(event, ExecOutput):
            await stream.send(event.data, _CHANNELS[event.stream])
        else:
            await stream.send_message(event)

    with anyio.CancelScope() as scope:
        stream.on_cancel = scope.cancel
        if stream.cancelled:
            scope.cancel()
        source = _Input(stream) if operation.input else None
        return await transport.call(operation.name, params, Call(emit, source, vanished=lambda: not stream.cancelled))
    raise LinkLost("the caller cancelled the operation")


class _Input:
    """What the client sends on a stream, each piece acknowledged when the next is asked for."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._taken = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._stream.grant(self._taken)
        while True:
            item = await self._stream.receive()
            if isinstance(item, Data):
                self._taken = len(item.data)
                return item.data
            if isinstance(item, Eof | Cancel):
                raise StopAsyncIteration
