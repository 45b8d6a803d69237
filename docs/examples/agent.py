"""An agent that works in two workspaces at once, streams what happens and gives up on what takes too long.

``python agent.py [asyncio|trio]``
"""

from __future__ import annotations

import sys

import anyio

from pyro_async import AsyncPyro
from pyro_async.operations import ExecOutput

PROGRAM = """
cat > check.py <<'PY'
import platform
print("checking on", platform.node())
assert sum(range(10)) == 45
PY
python3 check.py
"""


async def work(client: AsyncPyro, name: str) -> None:
    """One line of thought: a workspace of its own, gone when the thought is over."""
    workspace = await client.create_workspace("debian:12", name=name, labels={"made-by": "example"})
    try:
        async with client.stream_exec(workspace.workspace_id, PROGRAM) as events:
            async for event in events:
                if isinstance(event, ExecOutput):
                    print(f"[{name}] {event.data.decode().rstrip()}")

        with anyio.move_on_after(1) as patience:  # cancels the command, and kills its whole tree in the guest
            await client.exec_workspace(workspace.workspace_id, "sleep 600 & sleep 600")
        left = await client.exec_workspace(workspace.workspace_id, "pgrep -x sleep || echo none")
        print(f"[{name}] gave up: {patience.cancelled_caught}, processes left: {left.stdout.strip()}")
    finally:
        with anyio.CancelScope(shield=True):
            await client.delete_workspace(workspace.workspace_id)


async def main() -> None:
    """Works in both at once; if one fails, the other is cancelled and cleans up."""
    async with AsyncPyro() as client, anyio.create_task_group() as thoughts:
        thoughts.start_soon(work, client, "first")
        thoughts.start_soon(work, client, "second")


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
