"""The tools: each is an operation of the OPERATIONS table with what a model needs to know about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import mcp_types as types
import msgspec
from msgspec import NODEFAULT, structs

from pyro_async.calls import CallEvent, decode_params
from pyro_async.client import AsyncPyro
from pyro_async.errors import InvalidArgument
from pyro_async.operations import OPERATIONS, ExecResult, Operation, Params, Result, WorkspaceLogs
from pyro_mcp_server.excerpt import DEFAULT_OUTPUT_CHARS, OutputChars
from pyro_mcp_server.guides import GUIDES, PARAMETERS, PROFILES
from pyro_mcp_server.schemas import input_schema, output_schema

__all__ = ["OUTPUT_CHARS", "Tool", "tools_of"]

#: The parameter that only tools have: it says how much output their results may carry.
OUTPUT_CHARS: Final = "max_output_chars"


class Tool(NamedTuple):
    """One tool.

    Attributes:
        operation: what it does.
        arguments: their type: the operation's parameters, with standard input as text.
        definition: as the protocol lists it.
    """

    operation: Operation
    arguments: type[Params]
    definition: types.Tool

    def parse(self, arguments: dict[str, Any]) -> Params:
        """Decodes and verifies arguments.

        Raises:
            InvalidArgument: with what the tool takes as the hint.
        """
        try:
            return decode_params(msgspec.msgpack.encode(arguments), self.arguments)
        except InvalidArgument as error:
            raise InvalidArgument(error.message, hint=self._usage()) from error
        except (OverflowError, ValueError) as error:  # beyond 64 bits, or half a character
            raise InvalidArgument(str(error), hint=self._usage()) from error

    async def call(self, client: AsyncPyro, arguments: Params, on_event: Callable[[CallEvent], None]) -> Result:
        """Carries the operation out."""
        given = structs.asdict(arguments)
        given.pop(OUTPUT_CHARS, None)
        if self.operation.input:
            given["on_event"] = on_event
        elif self.operation.events is not None:
            given["on_progress"] = on_event
        method = getattr(client, self.operation.name)
        return cast("Result", await method(**given))

    def _usage(self) -> str:
        fields = structs.fields(self.arguments)
        required = ", ".join(field.name for field in fields if field.required) or "nothing"
        optional = ", ".join(field.name for field in fields if not field.required) or "nothing"
        return f"{self.operation.mcp} requires {required}; optional: {optional}"


def tools_of(profile: str) -> dict[str, Tool]:
    """The tools of a profile by name, in the order of the table."""
    return {
        operation.mcp: _tool(operation.mcp, operation)
        for operation in OPERATIONS.values()
        if operation.mcp in PROFILES[profile].tools
    }


def _tool(name: str, operation: Operation) -> Tool:
    arguments = _arguments(operation)
    guide = GUIDES[name]
    definition = types.Tool(
        name=name,
        title=guide.title,
        description=guide.description,
        input_schema=input_schema(arguments, PARAMETERS),
        output_schema=output_schema(operation.result),
        annotations=types.ToolAnnotations(
            read_only_hint=operation.read_only,
            destructive_hint=operation.destructive,
            idempotent_hint=operation.idempotent,
            open_world_hint=operation.open_world,
        ),
    )
    return Tool(operation, arguments, definition)


def _arguments(operation: Operation) -> type[Params]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in structs.fields(operation.params):
        if field.name == "stdin" and operation.input:
            fields.append(("stdin", str | None, None))
        elif field.required:
            fields.append((field.name, field.type))
        elif field.default_factory is not NODEFAULT:
            fields.append((field.name, field.type, msgspec.field(default_factory=field.default_factory)))
        else:
            fields.append((field.name, field.type, field.default))
    if operation.result in (ExecResult, WorkspaceLogs):
        fields.append((OUTPUT_CHARS, OutputChars, DEFAULT_OUTPUT_CHARS))
    kind = msgspec.defstruct(
        operation.params.__name__, fields, bases=(Params,), frozen=True, kw_only=True, forbid_unknown_fields=True
    )
    return cast("type[Params]", kind)
