from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from pyro_async.transport import stop_daemon


@pytest.fixture(scope="module")
def daemon_home(pyro_home: Path) -> Iterator[Path]:
    """A home whose daemon the examples start, and that is ended with all its VMs afterwards."""
    yield pyro_home

    async def stop() -> None:
        await stop_daemon(pyro_home, all=True)

    anyio.run(stop)
