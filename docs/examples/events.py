"""Watches what happens, and goes on later behind the last event seen."""

from __future__ import annotations

import sys

import anyio

from pyro_async import AsyncPyro


async def main() -> None:
    """Prints the kinds of the events of one workspace's life."""
    async with AsyncPyro() as client:
        cursor = 0
        while page := (await client.list_events(after=cursor)).events:  # what happened before is of no interest here
            cursor = page[-1].event_id
        workspace = await client.create_workspace("debian:12")
        async with client.follow_events(after=cursor) as events:
            async for event in events:
                print(event.kind, event.workspace_id == workspace.workspace_id)
                cursor = event.event_id
                if event.kind == "workspace.started":
                    break
        await client.exec_workspace(workspace.workspace_id, "exit 3")
        await client.delete_workspace(workspace.workspace_id)
        for event in (await client.list_events(after=cursor)).events:
            print(event.kind, event.detail.get("exit_code", ""))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
