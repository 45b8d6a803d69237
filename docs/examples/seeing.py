"""What a workspace uses, and how it ends by itself: an hour to live, stopped after a quarter without use."""

from __future__ import annotations

import sys

import anyio

from pyro_async import AsyncPyro


async def main() -> None:
    """Makes a workspace that nobody has to clean up and looks at what it uses."""
    async with AsyncPyro() as client:
        workspace = await client.create_workspace("debian:12", ttl_seconds=3600, idle_stop_seconds=900)
        try:
            assert workspace.expires_at is not None
            print(f"lives for {workspace.expires_at - workspace.created_at:.0f} s")
            async with client.stream_exec(workspace.workspace_id, "echo ready; exec sleep 60") as events:
                async for _ in events:
                    break
                used = (await client.status_workspace(workspace.workspace_id)).resources
            assert used is not None
            print(f"{used.running_commands} command runs")
            if used.guest is not None:
                print(f"the guest has {used.guest.mem_available_bytes >> 20} MiB of memory left")
            if used.vmm is not None:
                print(f"its VM takes {used.vmm.rss_bytes >> 20} MiB of the host's")
        finally:
            await client.delete_workspace(workspace.workspace_id)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
