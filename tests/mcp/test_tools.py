"""The list of tools: what models and clients are told before the first call."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # its stubs are a package of their own

from pyro_async.errors import InvalidArgument
from pyro_async.operations import OPERATIONS
from pyro_mcp_server.guides import DEFAULT_PROFILE, GUIDES, PARAMETERS, PROFILES
from pyro_mcp_server.schemas import FAILURE_FIELDS
from pyro_mcp_server.tools import OUTPUT_CHARS, Tool, tools_of

TOOLS = tools_of("workspace-full")
#: Characters of four a token; what a profile may take of a model's context.
BUDGETS = {"vm-run": 4_000, "workspace-core": 24_000, "workspace-full": 60_000}

each_tool = pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS.keys())


def examples(tool: Tool) -> list[dict[str, Any]]:
    """The arguments that a description gives as examples."""
    _, _, text = (tool.definition.description or "").rpartition("\nExample")
    found = []
    while (start := text.find("{")) >= 0:
        value, end = json.JSONDecoder().raw_decode(text, start)
        found.append(value)
        text = text[end:]
    return found


@each_tool
def test_schemas_are_valid_and_refer_to_nothing(tool: Tool) -> None:
    for schema in (tool.definition.input_schema, tool.definition.output_schema):
        assert schema is not None
        Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert "$ref" not in json.dumps(schema)
        assert "\\" not in json.dumps(schema), "an anchor that only Python knows"


@each_tool
def test_defaults_fit_their_own_schemas(tool: Tool) -> None:
    for name, schema in tool.definition.input_schema["properties"].items():
        required = name in tool.definition.input_schema["required"]
        assert required != ("default" in schema)
        if not required:
            Draft202012Validator(schema).validate(schema["default"])


@each_tool
def test_every_parameter_says_what_it_is_for(tool: Tool) -> None:
    for name, schema in tool.definition.input_schema["properties"].items():
        assert schema["description"] == PARAMETERS[name]


@each_tool
def test_examples_are_accepted_by_schema_and_server(tool: Tool) -> None:
    assert examples(tool)
    for example in examples(tool):
        Draft202012Validator(tool.definition.input_schema).validate(example)
        tool.parse(example)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("workspace_create", {}),
        ("workspace_create", {"environment": ""}),
        ("workspace_create", {"environment": "debian:12", "vcpu_count": 9}),
        ("workspace_create", {"environment": "debian:12", "vcpu_count": "2"}),
        ("workspace_create", {"environment": "debian:12", "mem_mib": 127}),
        ("workspace_create", {"environment": "debian:12", "name": ".hidden"}),
        ("workspace_create", {"environment": "debian:12", "name": "a" * 65}),
        ("workspace_create", {"environment": "debian:12", "name": "a\nb"}),
        ("workspace_create", {"environment": "debian:12", "labels": {"-": "x"}}),
        ("workspace_create", {"environment": "debian:12", "labels": {"a": "x" * 257}}),
        ("workspace_create", {"environment": "debian:12", "size": 3}),
        ("workspace_exec", {"workspace": "a", "command": ""}),
        ("workspace_exec", {"workspace": "a", "command": [1]}),
        ("workspace_exec", {"workspace": "a", "command": "b", "timeout_seconds": 0}),
        ("workspace_exec", {"workspace": "a", "command": "b", "env": {"A B": "c"}}),
        ("workspace_exec", {"workspace": "a", "command": "b", "stdin": True}),
        ("workspace_exec", {"workspace": "a", "command": "b", "max_output_chars": 999}),
        ("workspace_logs", {"workspace": "a", "limit": 0}),
    ],
)
def test_schema_and_server_refuse_the_same(name: str, arguments: dict[str, Any]) -> None:
    assert not Draft202012Validator(TOOLS[name].definition.input_schema).is_valid(arguments)
    with pytest.raises(InvalidArgument) as caught:
        TOOLS[name].parse(arguments)
    assert caught.value.hint.startswith(f"{name} requires ")


@each_tool
def test_annotations_are_those_of_the_table(tool: Tool) -> None:
    operation, annotations = tool.operation, tool.definition.annotations
    assert annotations is not None
    assert (operation.read_only, operation.destructive, operation.idempotent, operation.open_world) == (
        annotations.read_only_hint,
        annotations.destructive_hint,
        annotations.idempotent_hint,
        annotations.open_world_hint,
    )


@each_tool
def test_a_failure_cannot_be_taken_for_a_result(tool: Tool) -> None:
    assert not set(FAILURE_FIELDS) & set(tool.operation.result.__struct_fields__)
    validator = Draft202012Validator(tool.definition.output_schema)
    assert validator.is_valid(dict.fromkeys(FAILURE_FIELDS, ""))
    assert not validator.is_valid({})


def properties_of(schema: Any) -> set[str]:
    """Names of all properties anywhere in a schema."""
    if isinstance(schema, list):
        return {name for each in schema for name in properties_of(each)}
    if not isinstance(schema, dict):
        return set()
    return {name for each in schema.values() for name in properties_of(each)} | set(schema.get("properties", ()))


@each_tool
def test_results_are_described_to_the_last_field(tool: Tool) -> None:
    fields: set[str] = set()
    pending: list[Any] = [msgspec.inspect.type_info(tool.operation.result)]
    while pending:
        kind = pending.pop()
        if isinstance(kind, msgspec.inspect.StructType):
            fields |= {field.encode_name for field in kind.fields} | ({kind.tag_field} if kind.tag_field else set())
            pending += [field.type for field in kind.fields]
        pending += [getattr(kind, "item_type", None), *getattr(kind, "types", ())]
        pending = [each for each in pending if each is not None]
    assert properties_of(tool.definition.output_schema) == fields | set(FAILURE_FIELDS)


def test_texts_are_for_tools_that_exist() -> None:
    assert GUIDES.keys() == {operation.mcp for operation in OPERATIONS.values() if operation.mcp}
    assert {name for tool in TOOLS.values() for name in tool.arguments.__struct_fields__} == PARAMETERS.keys()
    assert all(profile.tools <= GUIDES.keys() for profile in PROFILES.values())
    assert PROFILES["workspace-full"].tools == GUIDES.keys()
    assert DEFAULT_PROFILE in PROFILES


def test_what_carries_output_lets_the_caller_bound_it() -> None:
    bounded = {name for name, tool in TOOLS.items() if OUTPUT_CHARS in tool.arguments.__struct_fields__}
    assert bounded == {"workspace_exec", "vm_run", "exec_cancel", "exec_wait", "workspace_logs"}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_leaves_room_in_a_models_context(profile: str) -> None:
    listed = [
        tool.definition.model_dump(by_alias=True, exclude_none=True, mode="json") for tool in tools_of(profile).values()
    ]
    assert len(json.dumps(listed)) <= BUDGETS[profile]
