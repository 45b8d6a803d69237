"""JSON Schemas of tools from msgspec Structs, in the form that clients and models take best: small, and free of
references."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pyro_async.operations import Params, Result

__all__ = ["FAILURE_FIELDS", "input_schema", "output_schema"]

Schema = dict[str, Any]

#: Fields of the structured content of an error result.
FAILURE_FIELDS: Final = ("code", "message", "hint")
_REFERENCE: Final = "#/$defs/"


def input_schema(kind: type[Params], descriptions: dict[str, str]) -> Schema:
    """The schema of a tool's arguments, every property with its description."""
    schema = _schema(kind)
    properties = {
        name: {"description": descriptions[name], **_plain(value)} for name, value in schema["properties"].items()
    }
    return {**schema, "properties": properties}


def output_schema(kind: type[Result]) -> Schema:
    """The schema of a tool's structured content: the result, or the fields of a failure.

    Both, because some clients hold error results against it as well; at the root of type object, as older revisions
    of the protocol demand.
    """
    schema = _schema(kind)
    failure = {name: {"type": "string"} for name in FAILURE_FIELDS}
    return {
        "type": "object",
        "properties": {**{name: _plain(value) for name, value in schema["properties"].items()}, **failure},
        "anyOf": [{"required": schema.get("required", [])}, {"required": list(FAILURE_FIELDS)}],
    }


def _schema(kind: type) -> Schema:
    (reference,), components = msgspec.json.schema_components([kind], ref_template=_REFERENCE + "{name}")
    schema: Schema = _inlined(reference, components)
    return schema


def _inlined(node: Any, components: dict[str, Any]) -> Any:  # noqa: ANN401 - any part of a schema
    """``node`` with references replaced, Struct names and docstrings left out, and patterns as JSON Schema has them."""
    if isinstance(node, list):
        return [_inlined(each, components) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(components[node["$ref"].removeprefix(_REFERENCE)], components)
    named = {"title", "description"} if "title" in node else set()
    found = {key: _inlined(value, components) for key, value in node.items() if key not in named}
    if isinstance(pattern := node.get("pattern"), str):
        found["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
    return found


def _plain(node: Any) -> Any:  # noqa: ANN401 - any part of a schema
    """``node`` without descriptions: what a parameter is for is said once, at its top."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if key != "description"}
    return node
