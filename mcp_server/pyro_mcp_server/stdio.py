"""One client over a pair of byte streams: one JSON-RPC message a line, as MCP's stdio transport has it.

Not the SDK's own: that one reads and writes in threads that no cancellation ends, so a signal would leave a server
behind that waits for its client.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Final

import anyio
import mcp_types as types
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError

__all__ = ["serve_lines"]

#: Bytes of one message; a client that sends a longer one is given up.
MESSAGE_LIMIT: Final = 64 * 1024 * 1024
#: Seconds that a client which has closed its end may take to read what is still due to it.
_FAREWELL: Final = 2.0

_log: Final = logging.getLogger(__name__)

Write = Callable[[bytes], Awaitable[None]]


async def serve_lines(server: Server[Any], source: AsyncIterable[bytes], write: Write) -> None:
    """Serves the client until ``source`` ends or ``write`` finds nobody there, then ends what the client has begun.

    Args:
        server: what to serve.
        source: bytes from the client.
        write: sends bytes to the client; raises OSError if it is gone.
    """
    arrived, inbound = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outbound, leaving = anyio.create_memory_object_stream[SessionMessage](0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_read, source, arrived, outbound.clone(), name="read")
        tasks.start_soon(_write, leaving, write, tasks.cancel_scope, name="write")
        await server.run(inbound, outbound, server.create_initialization_options())
        tasks.cancel_scope.deadline = anyio.current_time() + _FAREWELL


async def _read(
    source: AsyncIterable[bytes],
    arrived: MemoryObjectSendStream[SessionMessage | Exception],
    outbound: MemoryObjectSendStream[SessionMessage],
) -> None:
    async with arrived, outbound:
        try:
            async for line in _lines(source):
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValidationError:
                    await outbound.send(SessionMessage(_refusal(line)))
                else:
                    await arrived.send(SessionMessage(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the server has ended
        except OSError as error:
            _log.warning("reading from the client failed: %s", error)


async def _write(leaving: MemoryObjectReceiveStream[SessionMessage], write: Write, serving: anyio.CancelScope) -> None:
    async with leaving:
        async for item in leaving:
            line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                await write(line.encode() + b"\n")
            except OSError:  # the client is gone, and with it whoever wanted the answers
                serving.cancel()
                return


async def _lines(source: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    pending: list[bytes] = []
    size = 0
    async for data in source:
        *complete, rest = data.split(b"\n")
        for line in complete:
            whole = b"".join([*pending, line])
            pending, size = [], 0
            if whole.strip():
                yield whole
        pending.append(rest)
        size += len(rest)
        if size > MESSAGE_LIMIT:
            _log.error("a message of more than %d bytes: giving the client up", MESSAGE_LIMIT)
            return


def _refusal(line: bytes) -> types.JSONRPCError:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        error = types.ErrorData(code=types.PARSE_ERROR, message="Parse error: a line must be one JSON-RPC message")
    else:
        error = types.ErrorData(code=types.INVALID_REQUEST, message="Invalid request: not a JSON-RPC 2.0 message")
    return types.JSONRPCError(jsonrpc="2.0", id=None, error=error)
