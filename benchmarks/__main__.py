"""``python -m benchmarks``: runs, prints, writes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

import anyio
import msgspec
from rich.console import Console

from benchmarks.measure import Settings
from benchmarks.picture import draw
from benchmarks.results import Report, Row, describe_machine, versions
from benchmarks.table import table
from pyro_async.errors import PyroError

#: In this order; each is a module of this package with ``async def run(settings) -> list[Row]``.
BENCHMARKS = ("guest_exec", "throughput", "cold_boot", "memory_exec", "multiplexer", "command_line", "idle")


async def measure(names: Sequence[str], settings: Settings, backend: str) -> Report:
    """Runs benchmarks one after the other. One that this host cannot run is skipped and says why."""
    started_at, began = time.time(), time.monotonic()
    machine = describe_machine()
    results: dict[str, list[Row]] = {}
    skipped: dict[str, str] = {}
    for name in names:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        run = cast("Callable[[Settings], Awaitable[list[Row]]]", import_module(f"benchmarks.{name}").run)
        try:
            results[name] = await run(settings)
        except PyroError as error:
            skipped[name] = str(error)
            print(f"skipped: {error}", file=sys.stderr, flush=True)
    return Report(
        started_at=started_at,
        seconds=time.monotonic() - began,
        quick=settings.quick,
        backend=backend,
        machine=machine,
        versions=versions(),
        results=results,
        skipped=skipped,
    )


def main() -> None:
    """Parses the command line; exits with 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples, smaller amounts: about a minute")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help="of " + ", ".join(BENCHMARKS))
    parser.add_argument("--output", type=Path, default=Path("bench-results"), help="directory (default %(default)s)")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    options = parser.parse_args()

    names = [name for name in BENCHMARKS if name in (options.only or BENCHMARKS)]
    report = anyio.run(measure, names, Settings(quick=options.quick), options.backend, backend=options.backend)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    draw(report, options.output / "results.png")
    console = Console()
    console.width = max(console.width, 132)  # rows are not cut where nobody's terminal sets the width
    console.print(table(report))
    print(f"{report.seconds:.0f} s; written to {options.output}/results.json and results.png")


if __name__ == "__main__":
    main()
