"""A workspace's life: names and labels, stop and start, what persists."""

from __future__ import annotations

import sys

import anyio

from pyro_async import AsyncPyro


async def main() -> None:
    """Writes files, stops, starts and finds them again."""
    async with AsyncPyro() as client:
        workspace = await client.create_workspace("debian:12", name="lifecycle", labels={"purpose": "demo"})
        try:
            await client.exec_workspace(
                "lifecycle", "echo kept > notes; echo 'set -o vi' >> /etc/profile; echo gone > /tmp/x"
            )
            await client.update_workspace("lifecycle", labels={"purpose": "example"})
            print((await client.stop_workspace("lifecycle")).state)
            print((await client.start_workspace("lifecycle")).state)
            found = await client.exec_workspace("lifecycle", "cat notes; tail -n 1 /etc/profile; cat /tmp/x 2>&1")
            print(found.stdout.strip())
            print((await client.status_workspace("lifecycle")).labels)
        finally:
            await client.delete_workspace(workspace.workspace_id)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
