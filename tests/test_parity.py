"""Every operation has the same name and parameters on every surface."""

from __future__ import annotations

import inspect
from typing import Any

import asyncclick as click
import msgspec
import pytest

from pyro_async.client import AsyncPyro
from pyro_async.operations import OPERATIONS, Operation
from pyro_cli.app import App, pyro

#: Of a command: how it prints. Of a method: what it calls back.
PRESENTATION = {"as_json", "id_only"}
CALLBACKS = {"on_progress", "on_event"}

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


def fields_of(operation: Operation) -> dict[str, Any]:
    """Names of an operation's parameters with their defaults; NODEFAULT where there is none."""
    return {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(operation.params)
    }


@operations
def test_the_command_takes_exactly_the_operations_parameters(operation: Operation) -> None:
    parameters = {parameter.name: parameter for parameter in COMMANDS[operation.cli].params}
    assert parameters.keys() - PRESENTATION == fields_of(operation).keys()
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


def test_the_client_has_no_operation_beside_the_table() -> None:
    methods = {name for name, value in vars(AsyncPyro).items() if callable(value) and not name.startswith("_")}
    assert methods - {"stream_exec"} == OPERATIONS.keys()


@pytest.mark.parametrize("words", ["", *COMMANDS])
def test_help_ends_with_an_example_that_parses(words: str) -> None:
    command = COMMANDS[words] if words else pyro
    assert command.help
    heading, *lines = command.epilog.removeprefix("\b\n").splitlines() if command.epilog else [""]
    assert heading == "Example:"
    assert lines
    assert all(f"pyro {words}".strip() in line for line in lines)


@pytest.mark.parametrize(
    "words", [words for words, command in COMMANDS.items() if not isinstance(command, click.Group)]
)
def test_every_command_can_print_json(words: str) -> None:
    assert "--json" in {option for parameter in COMMANDS[words].params for option in parameter.opts}
