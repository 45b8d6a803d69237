"""Entry point of PID 1 in the guest."""

from __future__ import annotations

import os
import resource
import signal
import sys

import anyio

from pyro_agent.channel import DescriptorStream, PortStream, accept_vsock, find_port, listen_vsock
from pyro_agent.guest_system import GuestSystem
from pyro_agent.server import Agent

#: Open files of the agent and, by inheritance, of commands: soft and hard limit.
_OPEN_FILES = (65536, 524288)


async def serve() -> None:
    """Serves the host for as long as the machine runs, over whichever channel the kernel's command line names."""
    system = GuestSystem()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(system.reap_forever, name="reaper")
        agent = Agent(system, tasks)
        if _speaks_vsock():
            listener = listen_vsock()
            while True:
                tasks.start_soon(_serve_connection, agent, await accept_vsock(listener), name="connection")
        port = os.open(find_port(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        rest = b""
        while True:
            rest = await agent.serve(PortStream(port), rest)


def _speaks_vsock() -> bool:
    with open("/proc/cmdline") as file:
        return "pyro.channel=vsock" in file.read().split()


async def _serve_connection(agent: Agent, stream: DescriptorStream) -> None:
    await agent.serve(stream)


def main() -> None:
    """Runs until the power goes. No process may be left hanging: whatever goes wrong ends the machine, in the open."""
    # PID 1 is exempt from signals it has no handler for, and from the kernel's out-of-memory killer.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    try:
        anyio.run(serve)
    except BaseException:
        import traceback

        print("pyro: the agent has failed", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        GuestSystem().power_off()


if __name__ == "__main__":
    main()
