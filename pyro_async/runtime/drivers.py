"""Which driver runs a workspace: the best one that really runs a guest on this host, or the one it was started with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_async.errors import DriverUnavailable
from pyro_async.images.progress import Report
from pyro_async.operations import Progress
from pyro_async.vmm.driver import Driver
from pyro_async.vmm.probe import select_driver
from pyro_async.vmm.qemu import QemuDriver

__all__ = ["Drivers"]


class Drivers:
    """The drivers of one home.

    Args:
        cache: file that keeps what probing found out.
        candidates: best first; by default all that pyro has. A single one is used without probing.
    """

    def __init__(self, cache: Path, candidates: Sequence[Driver] = ()) -> None:
        self._cache = cache
        self._candidates = tuple(candidates) or (QemuDriver("kvm"), QemuDriver("tcg"))

    async def choose(self, kernel: Path, report: Report) -> Driver:
        """The first driver that runs a guest here; boots probe guests if that is not known yet.

        Raises:
            DriverUnavailable: none does.
        """
        if len(self._candidates) == 1:
            return self._candidates[0]

        def on_probe(driver: Driver) -> None:
            report(Progress(phase="probe", detail=f"finding out whether {driver_name(driver)} runs guests here"))

        return await select_driver(self._candidates, kernel, self._cache, on_probe)

    def named(self, name: str) -> Driver:
        """The driver that ``driver/acceleration`` names, or its default acceleration."""
        for candidate in self._candidates:
            if name in (candidate.name, driver_name(candidate)):
                return candidate
        raise DriverUnavailable(f"this version of pyro has no driver {name!r}", hint="use the version that has it")


def driver_name(driver: Driver) -> str:
    """How results name a driver."""
    return f"{driver.name}/{driver.acceleration}"
