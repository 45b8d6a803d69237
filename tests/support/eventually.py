"""Waiting for what nothing announces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

__all__ = ["eventually"]


async def eventually(condition: Callable[[], Awaitable[object] | object], seconds: float = 20) -> None:
    """Asks again and again until ``condition`` holds; TimeoutError if it does not within ``seconds``."""
    with anyio.fail_after(seconds):
        while True:
            outcome = condition()
            if await outcome if isinstance(outcome, Awaitable) else outcome:
                return
            await anyio.sleep(0.01)
