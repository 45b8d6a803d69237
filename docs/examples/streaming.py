"""Streams output as it comes, feeds stdin, and meets a timeout."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import anyio

from pyro_async import AsyncPyro
from pyro_async.operations import ExecOutput, ExecResult


async def numbers() -> AsyncIterator[bytes]:
    """Standard input, made while the command already reads it."""
    for number in range(5):
        yield f"{number}\n".encode()
        await anyio.sleep(0.01)


async def main() -> None:
    """Runs three commands in one workspace."""
    async with AsyncPyro() as client:
        workspace = (await client.create_workspace("debian:12")).workspace_id
        try:
            async with client.stream_exec(workspace, "for i in 1 2 3; do echo line $i; done; echo oops >&2") as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        print(event.stream, event.data.decode().rstrip().replace("\n", " | "))
                    elif isinstance(event, ExecResult):
                        print("exit code", event.exit_code)

            total = await client.exec_workspace(workspace, ["awk", "{ n += $1 } END { print n }"], stdin=numbers())
            print("sum", total.stdout.strip())

            slow = await client.exec_workspace(workspace, "echo started; sleep 60", timeout_seconds=1)
            print("timed out", slow.timed_out, slow.exit_code, slow.stdout.strip())
        finally:
            await client.delete_workspace(workspace)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
