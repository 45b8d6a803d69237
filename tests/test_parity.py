"""Every operation has the same name and parameters on every surface."""

from __future__ import annotations

import inspect
from typing import Any

import asyncclick as click
import msgspec
import pytest

from pyro_async.client import AsyncPyro
from pyro_async.operations import OPERATIONS, Operation, Params
from pyro_cli.app import App, pyro
from pyro_mcp_server.tools import OUTPUT_CHARS, tools_of

#: Of a command: how it prints. Of a method: what it calls back. Of a tool: how much it says.
PRESENTATION = {"as_json", "id_only"}
CALLBACKS = {"on_progress", "on_event"}
BUDGET = {OUTPUT_CHARS}
#: Commands whose standard output belongs to a protocol.
SPEAKING_A_PROTOCOL = {"mcp serve"}

operations = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)


def commands(group: click.Group, words: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """All commands below a group by their words, groups too."""
    found: dict[str, click.Command] = {}
    context = click.Context(group, obj=App())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found[" ".join((*words, name))] = command
        if isinstance(command, click.Group):
            found |= commands(command, (*words, name))
    return found


COMMANDS = commands(pyro)
TOOLS = tools_of("workspace-full")


def command_of(operation: Operation) -> click.Command:
    """The command that carries an operation out, perhaps only with a flag: then it has the flag as well."""
    return COMMANDS[operation.cli.partition(" --")[0]]


def flags_of(operation: Operation) -> set[str]:
    """Parameters of the operation's command that belong to another operation of the same command."""
    others = [other for other in OPERATIONS.values() if command_of(other) is command_of(operation)]
    names = {name for other in others for name in fields_of(other)} - fields_of(operation).keys()
    return names | {other.cli.partition(" --")[2] for other in others} - {""}


def fields_of(operation: Operation) -> dict[str, Any]:
    """Names of an operation's parameters with their defaults; NODEFAULT where there is none."""
    return defaults(operation.params)


def defaults(params: type[Params]) -> dict[str, Any]:
    """Names of the fields with their defaults; NODEFAULT where there is none."""
    return {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(params)
    }


@operations
def test_the_command_takes_exactly_the_operations_parameters(operation: Operation) -> None:
    parameters = {parameter.name: parameter for parameter in command_of(operation).params}
    assert parameters.keys() - PRESENTATION - flags_of(operation) == fields_of(operation).keys()
    assert "as_json" in parameters
    for name, default in fields_of(operation).items():
        assert parameters[name].required == (default is msgspec.NODEFAULT)
        if isinstance(default, int | str):
            assert parameters[name].default == default, name


@operations
def test_the_method_takes_exactly_the_operations_parameters(operation: Operation) -> None:
    parameters = dict(inspect.signature(getattr(AsyncPyro, operation.name)).parameters)
    del parameters["self"]
    assert parameters.keys() - CALLBACKS == fields_of(operation).keys()
    for name, default in fields_of(operation).items():
        assert (parameters[name].default is inspect.Parameter.empty) == (default is msgspec.NODEFAULT)
        if isinstance(default, int | str) and name != "stdin":  # the method takes the input itself
            assert parameters[name].default == default, name


@operations
def test_the_tool_takes_exactly_the_operations_parameters(operation: Operation) -> None:
    if operation.mcp is None:
        assert operation.mcp_absent, "a tool, or why there is none"
        return
    assert operation.mcp_absent is None
    parameters = defaults(TOOLS[operation.mcp].arguments)
    assert parameters.keys() - BUDGET == fields_of(operation).keys()
    for name, default in fields_of(operation).items():
        if name != "stdin":  # the tool takes the input itself
            assert parameters[name] == default, name


def test_there_is_no_tool_beside_the_table() -> None:
    assert TOOLS.keys() == {operation.mcp for operation in OPERATIONS.values()} - {None}


def test_the_client_has_no_operation_beside_the_table() -> None:
    methods = {name for name, value in vars(AsyncPyro).items() if callable(value) and not name.startswith("_")}
    assert methods - {"stream_exec", "follow_events"} == OPERATIONS.keys()


@pytest.mark.parametrize("words", ["", *COMMANDS])
def test_help_ends_with_an_example_that_parses(words: str) -> None:
    command = COMMANDS[words] if words else pyro
    assert command.help
    heading, *lines = command.epilog.removeprefix("\b\n").splitlines() if command.epilog else [""]
    assert heading == "Example:"
    assert lines
    assert all(f"pyro {words}".strip() in line for line in lines)


@pytest.mark.parametrize(
    "words",
    [
        words
        for words, command in COMMANDS.items()
        if not isinstance(command, click.Group) and words not in SPEAKING_A_PROTOCOL
    ],
)
def test_every_command_can_print_json(words: str) -> None:
    assert "--json" in {option for parameter in COMMANDS[words].params for option in parameter.opts}
