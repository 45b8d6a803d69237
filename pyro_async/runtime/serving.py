"""Serves one client's connection: every stream it opens is one operation in a task of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

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
        return await transport.call(operation.name, params, Call(emit, _input(stream) if operation.input else None))
    raise LinkLost("the caller cancelled the operation")


async def _input(stream: Stream) -> AsyncIterator[bytes]:
    """What the client sends on the stream, acknowledged as it is taken."""
    while True:
        item = await stream.receive()
        if isinstance(item, Data):
            yield item.data
            stream.grant(len(item.data))
        elif isinstance(item, Eof | Cancel):
            return
