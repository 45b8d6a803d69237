"""The runtime in the client's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, cast

from pyro_async.calls import Call, Transport
from pyro_async.errors import UnknownOperation
from pyro_async.operations import OPERATIONS, Params, Result
from pyro_async.runtime.runtime import Runtime

__all__ = ["DirectTransport", "embedded_transport"]


class DirectTransport:
    """Calls a runtime's handlers in the caller's task."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime: Final = runtime

    async def call(self, name: str, params: Params, call: Call) -> Result:
        """See :class:`~pyro_async.calls.Transport`."""
        if name not in OPERATIONS:
            raise UnknownOperation(f"there is no operation {name!r}")
        return cast("Result", await getattr(self._runtime, name)(params, call))


@asynccontextmanager
async def embedded_transport(home: Path) -> AsyncIterator[Transport]:
    """Runs a runtime for as long as the context lasts; leaving it stops all VMs cleanly."""
    async with Runtime(home) as runtime:
        yield DirectTransport(runtime)
