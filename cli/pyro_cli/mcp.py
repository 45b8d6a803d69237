"""``pyro mcp``: pyro as tools for models."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import asyncclick as click

from pyro_cli.app import App
from pyro_cli.options import example

__all__ = ["mcp"]


@click.group(epilog=example("pyro mcp serve", "pyro mcp serve --profile workspace-full"))
def mcp() -> None:
    """Let models use pyro through the Model Context Protocol."""


@mcp.command(epilog=example("pyro mcp serve", "pyro mcp serve --profile vm-run"))
@click.option(
    "--profile",
    type=click.Choice(["vm-run", "workspace-core", "workspace-full"]),
    default="workspace-core",
    show_default=True,
    help="Which tools to offer.",
)
@click.pass_obj
async def serve(app: App, profile: str) -> None:
    """Serve one client over stdin and stdout, until it closes them.

    stdout carries the protocol and nothing else; logs go to stderr. What the client began and did not detach ends with
    it.
    """
    import logging

    from pyro_cli.exec_io import read_stdin
    from pyro_mcp_server.server import make_server
    from pyro_mcp_server.stdio import serve_lines

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    with _private_streams() as (source, sink):
        await serve_lines(make_server(app.client, profile), read_stdin(source), _writer(sink))


@contextmanager
def _private_streams() -> Iterator[tuple[int, int]]:
    """The client's two descriptors; meanwhile stdin is empty and stdout is stderr, so that no stray output reaches the
    client and no child takes its input."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(null, 0)
        os.dup2(2, 1)
        yield source, sink
    finally:
        os.dup2(source, 0)
        os.dup2(sink, 1)
        for descriptor in (source, sink, null):
            os.close(descriptor)


def _writer(descriptor: int) -> Callable[[bytes], Awaitable[None]]:
    from anyio import to_thread

    from pyro_cli.exec_io import write_all

    async def write(data: bytes) -> None:
        # Abandoned when cancelled: a client that has stopped reading may never come back.
        await to_thread.run_sync(write_all, descriptor, data, abandon_on_cancel=True)

    return write
