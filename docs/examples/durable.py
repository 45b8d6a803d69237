"""Commands that outlast whoever started them: detached, asked for twice, read on from a cursor."""

from __future__ import annotations

import sys

import anyio

from pyro_async import AsyncPyro
from pyro_async.operations import ExecOutput, LogEnded, LogOutput, LogStarted

BUILD = "for step in 1 2 3; do echo step $step; sleep 0.3; done; exit 3"


async def main() -> None:
    """Starts a build with one client, loses that client, and goes on with another."""
    async with AsyncPyro() as client:
        workspace = (await client.create_workspace("debian:12")).workspace_id
        begun = await client.exec_workspace(workspace, BUILD, detach=True, idempotency_key="build-1")
        async with client.attach_exec(workspace, begun.exec_id) as events:
            async for event in events:
                if isinstance(event, ExecOutput):
                    print("first client:", event.data.decode().rstrip())
                    cursor = event.cursor
                    break

    async with AsyncPyro() as client:
        try:
            async with client.attach_exec(workspace, begun.exec_id, cursor=cursor) as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        print("second client:", event.data.decode().rstrip())

            # The retry of a caller that does not know whether its request ever arrived.
            again = await client.exec_workspace(workspace, BUILD, idempotency_key="build-1")
            print("same command:", again.exec_id == begun.exec_id, "exit code", again.exit_code)

            page = await client.read_exec(workspace, begun.exec_id, cursor=7, max_bytes=6)
            print("a page:", page.output[0].text, "next", page.next_cursor, "of", page.end)

            async with client.follow_logs(workspace) as log:
                async for entry in log:
                    if isinstance(entry, LogStarted):
                        print("log: $", entry.command[:10])
                    elif isinstance(entry, LogOutput):
                        print("log:", entry.data.decode().rstrip())
                    elif isinstance(entry, LogEnded):
                        print("log: exit code", entry.exit_code)
                        break
        finally:
            await client.delete_workspace(workspace)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
