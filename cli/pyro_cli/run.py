"""``pyro run``: one command in a VM of its own."""

from __future__ import annotations

from functools import partial

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import (
    command_argument,
    env_option,
    example,
    json_option,
    mem_option,
    stdin_option,
    timeout_option,
    vcpu_option,
)

__all__ = ["run"]


@click.command(
    epilog=example("pyro run debian:12 -- uname -a", "echo 'print(6 * 7)' | pyro run debian:12 --stdin -- python3 -")
)
@click.argument("environment")
@command_argument
@vcpu_option
@mem_option
@env_option
@stdin_option
@timeout_option
@json_option
@click.pass_obj
async def run(
    app: App,
    environment: str,
    command: tuple[str, ...],
    vcpu_count: int,
    mem_mib: int,
    env: dict[str, str],
    stdin: bool,
    timeout_seconds: float | None,
    as_json: bool,
) -> int:
    """Run COMMAND in a new VM that is deleted afterwards.

    Builds ENVIRONMENT first if it is missing. The exit status is the command's, 124 if it timed out. Write -- before a
    command that has options of its own.
    """
    from pyro_cli.exec_io import carry_out

    async with app.client() as client:
        operation = partial(
            client.run_in_vm,
            environment,
            command,
            vcpu_count=vcpu_count,
            mem_mib=mem_mib,
            env=env,
            timeout_seconds=timeout_seconds,
        )
        return await carry_out(operation, as_json=as_json, stdin=stdin)
