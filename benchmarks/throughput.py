"""Standard output and input of a command in a real guest, against the same channel with nothing on it but bytes.

Beside the target's baseline, the raw channel, stands what a bare loop reaches that joins the channel with the same
command: a command's output passes through a pipe, which costs a guest more than the channel does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from benchmarks.measure import Contender, Settings, alternate
from benchmarks.results import Row, at_least
from benchmarks.virtual import beside_bare_agent
from pyro_async.operations import ExecOutput

__all__ = ["run"]


async def run(settings: Settings) -> list[Row]:
    """Megabytes a second from a command's output to the caller, and from the caller to a command's input."""
    size = settings.count(64, 24) << 20
    data = bytes(size)
    writer, reader = f"head -c {size} /dev/zero", "cat"
    async with beside_bare_agent() as (host, workspace, link):
        client = host.client

        async def stdout() -> None:
            received = 0
            async with client.stream_exec(workspace, writer.split(), cwd="/") as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        received += len(event.data)
            assert received == size

        async def stdin() -> None:
            await client.exec_workspace(workspace, f"exec {reader} > /dev/null", cwd="/", stdin=data)

        def rate(transfer: Callable[[], Awaitable[None]]) -> Contender:
            async def contend() -> float:
                began = time.perf_counter()
                await transfer()
                return size / 1e6 / (time.perf_counter() - began)

            return contend

        def blocking(transfer: Callable[[int, str], None], command: str = "") -> Contender:
            async def run_it() -> None:
                transfer(size, command)

            return rate(run_it)

        rounds = settings.count(5, 3)
        out = await alternate(rounds, pyro=rate(stdout), raw=blocking(link.pull), piped=blocking(link.pull, writer))
        into = await alternate(rounds, pyro=rate(stdin), raw=blocking(link.push), piped=blocking(link.push, reader))
    piped = "bare loop and the same command"
    return [
        Row.of("stdout", "MB/s", out["pyro"], "raw channel, guest to host", out["raw"], at_least(0.8)),
        Row.of("stdout, both with a command", "MB/s", out["pyro"], piped, out["piped"]),
        Row.of("stdin", "MB/s", into["pyro"], "raw channel, host to guest", into["raw"], at_least(0.8)),
        Row.of("stdin, both with a command", "MB/s", into["pyro"], piped, into["piped"]),
    ]
