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
#: Names and docstrings of Structs, and what is said of a type: a tool says once, at the top, what a parameter is for.
_WORDS: Final = frozenset({"title", "description"})
#: What holds for arguments only: results are complete, and pyro makes them.
_LIMITS: Final = frozenset({"default", "minLength", "maxLength", "minItems"})


def input_schema(kind: type[Params], descriptions: dict[str, str]) -> Schema:
    """The schema of a tool's arguments, every property with its description."""
    schema = _schema(kind, without=_WORDS)
    properties = {name: {"description": descriptions[name], **value} for name, value in schema["properties"].items()}
    return {**schema, "properties": properties}


def output_schema(kind: type[Result]) -> Schema:
    """The schema of a tool's structured content: the result, or the fields of a failure.

    Both, because some clients hold error results against it as well; at the root of type object, as older revisions
    of the protocol demand.
    """
    schema = _schema(kind, without=_WORDS | _LIMITS)
    return {
        "type": "object",
        "properties": {**schema["properties"], **{name: {"type": "string"} for name in FAILURE_FIELDS}},
        "anyOf": [{"required": schema.get("required", [])}, {"required": list(FAILURE_FIELDS)}],
    }


def _schema(kind: type, *, without: frozenset[str]) -> Schema:
    (reference,), components = msgspec.json.schema_components([kind], ref_template=_REFERENCE + "{name}")
    schema: Schema = _tidied(reference, components, without)
    return schema


def _tidied(node: Any, components: dict[str, Any], without: frozenset[str]) -> Any:  # noqa: ANN401 - any part of it
    """``node`` with references replaced, some keywords left out, and patterns as JSON Schema has them."""
    if isinstance(node, list):
        return [_tidied(each, components, without) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _tidied(components[node["$ref"].removeprefix(_REFERENCE)], components, without)
    found = {}
    for key, value in node.items():
        if key == "properties":  # its keys are names of fields, not keywords
            found[key] = {name: _tidied(each, components, without) for name, each in value.items()}
        elif key == "pattern":
            found[key] = value.replace(r"\A", "^").replace(r"\Z", "$")
        elif key not in without:
            found[key] = _tidied(value, components, without)
    return found
