"""What a benchmark yields: one row for each figure, beside its baseline and its target."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from pyro_async import __version__

__all__ = ["Machine", "Report", "Row", "Target", "at_least", "at_most", "describe_machine", "versions"]

_LIBRARIES = ("anyio", "trio", "msgspec", "asyncclick")


class Target(msgspec.Struct, frozen=True):
    """What a row has to reach.

    Attributes:
        of: which of the row's values is meant.
        bound: whether ``limit`` is the most or the least allowed.
        limit: in the row's unit for a figure, a factor for a ratio.
    """

    of: Literal["figure", "ratio"]
    bound: Literal["at_most", "at_least"]
    limit: float


def at_most(limit: float, of: Literal["figure", "ratio"] = "ratio") -> Target:
    return Target(of, "at_most", limit)


def at_least(limit: float, of: Literal["figure", "ratio"] = "ratio") -> Target:
    return Target(of, "at_least", limit)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of pyro.

    Attributes:
        name: what was measured, and how.
        figure: pyro's value, a median unless the name says otherwise.
        baseline: the baseline's value, in the same unit.
        baseline_name: what the baseline is.
        ratio: figure / baseline.
        target: what it has to reach; None if it is only watched.
        met: whether it does; None without a target.
        spread: the middle half of pyro's samples, as low and high quartile.
        samples: how many.
    """

    name: str
    figure: float
    unit: str
    baseline: float
    baseline_name: str
    target: Target | None = None
    spread: tuple[float, float] | None = None
    samples: int = 1
    ratio: float = 0.0
    met: bool | None = None

    @classmethod
    def of(
        cls,
        name: str,
        unit: str,
        samples: list[float],
        baseline_name: str,
        baseline: list[float],
        target: Target | None = None,
    ) -> Row:
        """Compares samples of pyro with samples of its baseline by their medians."""
        low, figure, high = quartiles(samples)
        base = quartiles(baseline)[1]
        row = cls(
            name=name,
            figure=figure,
            unit=unit,
            baseline=base,
            baseline_name=baseline_name,
            target=target,
            spread=(low, high),
            samples=len(samples),
            ratio=figure / base,
        )
        return row if target is None else msgspec.structs.replace(row, met=row.cost <= 1)

    @property
    def cost(self) -> float:
        """How much of its allowance the row uses: 1 is the limit, less is better. Without a target: of the baseline."""
        if self.target is None:
            return 1 / self.ratio if self.unit.endswith("/s") else self.ratio
        value = self.ratio if self.target.of == "ratio" else self.figure
        return value / self.target.limit if self.target.bound == "at_most" else self.target.limit / value


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """Low quartile, median and high quartile, each of them a sample."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return ordered[last // 4], ordered[last // 2], ordered[last - last // 4]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures come from. ``load`` is the load average over one minute when the run began."""

    cpu: str
    cpu_count: int
    memory_gib: float
    kernel: str
    load: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One whole run.

    Attributes:
        started_at: seconds since the epoch.
        seconds: how long it took.
        results: rows by benchmark.
        skipped: why a benchmark yielded none.
    """

    started_at: float
    seconds: float
    quick: bool
    backend: str
    machine: Machine
    versions: dict[str, str]
    results: dict[str, list[Row]]
    skipped: dict[str, str]


def describe_machine() -> Machine:
    """Describes the machine this runs on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        cpu=cpu,
        cpu_count=len(os.sched_getaffinity(0)),
        memory_gib=round(memory, 1),
        kernel=platform.release(),
        load=os.getloadavg()[0],
    )


def versions() -> dict[str, str]:
    """Versions of everything that matters for the figures; of QEMU only if it is installed."""
    found = {"pyro": __version__, "python": platform.python_version()}
    found |= {name: metadata.version(name) for name in _LIBRARIES}
    try:
        output = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
        found["qemu"] = output.split("version ")[1].split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        print(f"no version of QEMU: {error}", file=sys.stderr)
    return found
