"""Taking samples: contenders in turn, so that whatever else the machine does disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import msgspec

__all__ = ["Contender", "Settings", "alternate", "timed"]

#: Runs once and returns its sample, in whatever unit the benchmark reports.
Contender = Callable[[], Awaitable[float]]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How thorough a run is. ``quick`` takes fewer samples and smaller amounts, of everything alike."""

    quick: bool = False

    def count(self, full: int, quick: int) -> int:
        """Picks a number of rounds or an amount."""
        return quick if self.quick else full


async def alternate(rounds: int, warm_up: int = 1, **contenders: Contender) -> dict[str, list[float]]:
    """Runs every contender once a round, and returns its samples.

    The first round begins with the first, every further round with the next. ``warm_up`` rounds go before and leave no
    samples.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            sample = await contenders[name]()
            if number >= warm_up:
                samples[name].append(sample)
    return samples


def timed(run: Callable[[], Awaitable[object]], scale: float = 1.0) -> Contender:
    """A contender whose sample is its duration in seconds times ``scale``."""

    async def contend() -> float:
        began = time.perf_counter()
        await run()
        return (time.perf_counter() - began) * scale

    return contend
