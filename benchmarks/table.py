"""The results as text."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from benchmarks.results import Report, Row

__all__ = ["quantity", "table", "target_text"]


def table(report: Report) -> Table:
    """All rows, grouped by benchmark."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("", "PYRO", "BASELINE", "", "RATIO", "TARGET", ""):
        grid.add_column(heading, justify="right" if heading in ("PYRO", "RATIO") else "left", no_wrap=True)
    for name, rows in report.results.items():
        grid.add_row(Text(name, style="bold"))
        for row in rows:
            grid.add_row(
                f"  {row.name}",
                quantity(row.figure, row.unit),
                quantity(row.baseline, row.unit),
                Text(row.baseline_name, style="dim"),
                f"{row.ratio:.2f}×",
                target_text(row),
                _verdict(row),
            )
    for name, reason in report.skipped.items():
        grid.add_row(Text(name, style="bold"), Text("skipped", style="yellow"), "", Text(reason, style="dim"))
    return grid


def _verdict(row: Row) -> Text:
    if row.met is None:
        return Text("")
    return Text("met", style="green") if row.met else Text("missed", style="bold red")


def target_text(row: Row) -> str:
    """A target in words, such as ``≤ 1.00×``; empty if there is none."""
    if row.target is None:
        return ""
    sign = "≤" if row.target.bound == "at_most" else "≥"
    amount = f"{row.target.limit:.2f}×" if row.target.of == "ratio" else quantity(row.target.limit, row.unit)
    return f"{sign} {amount}"


def quantity(value: float, unit: str) -> str:
    """A value with three significant digits and its unit."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M {unit}"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.0f} k {unit}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}"
