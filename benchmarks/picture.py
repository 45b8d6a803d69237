"""The results as one picture: how much of its target's allowance every figure uses."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Report, Row
from benchmarks.table import quantity, target_text

__all__ = ["draw"]

_MET, _MISSED, _WATCHED = "#1b7f79", "#d1495b", "#9aa5b1"
_INK, _FAINT, _PAPER = "#1f2933", "#7b8794", "#ffffff"
_ROW_INCHES = 0.34
#: Where names begin, in widths of the plot.
_LEFT = -0.598
#: Bars end here, so that one extreme figure does not flatten all others.
_RANGE = (1 / 16, 16.0)


def draw(report: Report, path: Path) -> None:
    """Writes the picture as PNG. Rows without a target are grey and stand against their baseline."""
    lines = _lines(report)
    figure = Figure(figsize=(12.5, 1.9 + _ROW_INCHES * len(lines)), facecolor=_PAPER)
    axes = figure.add_axes((0.235, 0.95 / figure.get_figheight(), 0.36, 1 - 1.9 / figure.get_figheight()))
    _prepare(axes, len(lines))
    for place, line in enumerate(lines):
        if isinstance(line, str):
            _heading(axes, place, line)
        else:
            _bar(axes, place, line)
    _captions(figure, axes, report)
    figure.savefig(path, dpi=150)


def _lines(report: Report) -> list[str | Row]:
    """Headings and rows, from top to bottom."""
    lines: list[str | Row] = []
    for name, rows in report.results.items():
        lines += [name.replace("_", " "), *rows]
    return lines


def _prepare(axes: Axes, count: int) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(*_RANGE)
    axes.set_ylim(count - 0.4, -0.6)
    ticks = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16]
    axes.set_xticks(ticks, ["¹⁄₁₆", "⅛", "¼", "½", "1", "2×", "4×", "8×", "16×"])
    axes.tick_params(axis="x", colors=_FAINT, labelsize=8.5, length=0)
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.minorticks_off()
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#eef1f4", linewidth=1)
    axes.axvspan(_RANGE[0], 1, color="#f3faf9", zorder=0)
    axes.axvline(1, color=_INK, linewidth=1.2, zorder=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _heading(axes: Axes, place: int, text: str) -> None:
    axes.text(_LEFT, place + 0.1, text, transform=axes.get_yaxis_transform(), color=_INK, weight="bold", fontsize=10)


def _bar(axes: Axes, place: int, row: Row) -> None:
    cost = row.cost
    colour = _WATCHED if row.met is None else _MET if row.met else _MISSED
    low, high = _RANGE
    end = min(max(cost, low * 1.06), high / 1.06)
    axes.plot([1, end], [place, place], color=colour, linewidth=6, solid_capstyle="butt", alpha=0.32, zorder=2)
    marker = "o" if low < cost < high else "<" if cost <= low else ">"
    axes.plot([end], [place], marker, color=colour, markersize=8, zorder=4, markeredgecolor=_PAPER)

    across = axes.get_yaxis_transform()
    axes.text(_LEFT + 0.035, place, row.name, transform=across, color=_INK, fontsize=9.5, va="center")
    columns = (
        (1.19, quantity(row.figure, row.unit), _INK, "bold", "right"),
        (1.22, f"against {quantity(row.baseline, row.unit)}", _FAINT, "normal", "left"),
        (1.72, f"{row.ratio:.2f}×", _INK, "normal", "right"),
        (1.77, target_text(row), colour if row.met is not None else _FAINT, "bold", "left"),
    )
    for x, text, shade, weight, side in columns:
        axes.text(x, place, text, transform=across, color=shade, fontsize=9.5, weight=weight, va="center", ha=side)


def _captions(figure: Figure, axes: Axes, report: Report) -> None:
    height = figure.get_figheight()
    across = axes.get_yaxis_transform()
    for x, text, side in ((1.19, "pyro", "right"), (1.22, "baseline", "left"), (1.72, "ratio", "right")):
        axes.text(x, -0.75, text, transform=across, color=_FAINT, fontsize=8.5, ha=side)
    axes.text(1.77, -0.75, "target", transform=across, color=_FAINT, fontsize=8.5)
    rows = [row for rows in report.results.values() for row in rows if row.met is not None]
    met = sum(row.met is True for row in rows)
    title = f"pyro beside its baselines: {met} of {len(rows)} targets met"
    figure.text(0.02, 1 - 0.42 / height, title, fontsize=15, weight="bold", color=_INK)
    machine = report.machine
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.started_at))
    made_of = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    about = f"{machine.cpu}, {machine.cpu_count} CPUs, {machine.memory_gib:.0f} GiB, load {machine.load:.1f}; {when}"
    axes.set_xlabel(
        "share of the target's allowance (grey: no target, share of the baseline's); further left is better",
        color=_FAINT,
        fontsize=8.5,
    )
    quick = " · quick run" if report.quick else ""
    figure.text(0.02, 1 - 0.68 / height, f"{about}{quick}", fontsize=8.5, color=_FAINT)
    figure.text(0.02, 0.18 / height, made_of, fontsize=8.5, color=_FAINT)
