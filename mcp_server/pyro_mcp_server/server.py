"""The MCP server, whatever transport carries it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import mcp_types as types
import msgspec
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from pyro_async import __version__
from pyro_async.calls import CallEvent
from pyro_async.errors import InternalError, LinkLost, PyroError
from pyro_async.operations import Params, Result
from pyro_mcp_server.clients import Connect, SharedClient, shared_client
from pyro_mcp_server.excerpt import DEFAULT_OUTPUT_CHARS, shortened
from pyro_mcp_server.guides import DEFAULT_PROFILE, PROFILES
from pyro_mcp_server.progress import progress_feed
from pyro_mcp_server.texts import describe, failure_of
from pyro_mcp_server.tools import OUTPUT_CHARS, Tool, tools_of

__all__ = ["make_server"]

#: How long a client may keep the list of tools, which does not change while a server lives.
_LIST_TTL_MS: Final = 3_600_000

_log: Final = logging.getLogger(__name__)

Context = ServerRequestContext[SharedClient, Any]


def make_server(connect: Connect, profile: str = DEFAULT_PROFILE) -> Server[SharedClient]:
    """Makes a server of the tools of ``profile``; all its calls share one client.

    Args:
        connect: makes the client; entered by the first call that needs it.
        profile: a key of :data:`~pyro_mcp_server.guides.PROFILES`.
    """
    tools = tools_of(profile)
    listing = types.ListToolsResult(tools=[tool.definition for tool in tools.values()])

    @asynccontextmanager
    async def lifespan(_: Server[SharedClient]) -> AsyncIterator[SharedClient]:
        async with shared_client(connect) as client:
            yield client

    async def list_tools(_: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return listing

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        tool = tools.get(params.name)
        if tool is None:
            known = ", ".join(tools)
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}; the tools of this server are {known}")
        async with progress_feed(context.session.report_progress) as on_event:
            return await _answer(tool, params.arguments or {}, context.lifespan_context, on_event)

    return Server(
        "pyro",
        version=__version__,
        title="pyro workspaces",
        instructions=PROFILES[profile].instructions,
        lifespan=lifespan,
        cache_hints={"tools/list": CacheHint(ttl_ms=_LIST_TTL_MS, scope="public")},
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _answer(
    tool: Tool, arguments: dict[str, Any], client: SharedClient, on_event: Callable[[CallEvent], None]
) -> types.CallToolResult:
    """Calls the tool; whatever goes wrong becomes a result that a model can act upon."""
    try:
        given = tool.parse(arguments)
        result = await _carry_out(tool, given, client, on_event)
        return _success(shortened(result, getattr(given, OUTPUT_CHARS, DEFAULT_OUTPUT_CHARS)))
    except PyroError as error:
        return _failure(error)
    except Exception as error:
        _log.exception("%s failed unexpectedly", tool.definition.name)
        return _failure(InternalError(f"unexpected {type(error).__name__}: {error}"))


async def _carry_out(tool: Tool, given: Params, client: SharedClient, on_event: Callable[[CallEvent], None]) -> Result:
    try:
        async with client.lent() as pyro:
            return await tool.call(pyro, given, on_event)
    except LinkLost:
        if not tool.operation.idempotent:
            raise
    async with client.lent() as pyro:  # the daemon may have been restarted since the last call
        return await tool.call(pyro, given, on_event)


def _success(result: Result) -> types.CallToolResult:
    text = types.TextContent(type="text", text=describe(result))
    return types.CallToolResult(content=[text], structured_content=msgspec.to_builtins(result))


def _failure(error: PyroError) -> types.CallToolResult:
    failure = failure_of(error)
    words = f"{failure.message}\nNext: {failure.hint}" if failure.hint else failure.message
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=f"{failure.code}: {words}")],
        structured_content={"code": failure.code, "message": failure.message, "hint": failure.hint},
        is_error=True,
    )
