"""Progress of longer operations, on stderr: one live line on a terminal, one line a finished phase elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from pyro_async.operations import Progress
from pyro_cli.output import duration, is_terminal, one_line

if TYPE_CHECKING:
    from rich.progress import Task, TaskID
    from rich.text import Text

__all__ = ["Phases", "show_phases"]


class Phases(AbstractContextManager["Phases"]):
    """Takes an operation's progress; leaving the block ends the display.

    The last phase counts as finished unless the block ends with an exception.
    """

    def __init__(self, display: Display | None) -> None:
        self._display: Display | None = display
        self._phase: str | None = None
        self._since = 0.0

    def __call__(self, progress: Progress) -> None:
        """Shows a step. Does not block."""
        if self._display is None:
            return
        if progress.phase != self._phase:
            self._finish_phase()
            self._phase, self._since = progress.phase, time.monotonic()
        title = f"{progress.phase}: {progress.detail}" if progress.detail else progress.phase
        self._display.step(one_line(title), progress.fraction)

    def close(self) -> None:
        """Ends the display, so that other output may follow; what is reported later is not shown."""
        self._finish_phase()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end()

    def _finish_phase(self) -> None:
        if self._display is not None and self._phase is not None:
            self._display.finished(one_line(self._phase), time.monotonic() - self._since)
        self._phase = None

    def _end(self) -> None:
        if self._display is not None:
            self._display.end()
            self._display = None


def show_phases(*, as_json: bool, transient: bool = False) -> Phases:
    """Returns the display that fits stderr.

    Args:
        as_json: a program reads; nothing is shown unless stderr is a terminal.
        transient: on a terminal nothing of it stays.
    """
    if is_terminal(2):
        return Phases(_Terminal(transient))
    return Phases(None if as_json else _Lines())


class Display(Protocol):
    """Where phases are shown."""

    def step(self, title: str, fraction: float | None) -> None:
        """The current phase is this, and so far done."""

    def finished(self, title: str, seconds: float) -> None:
        """The current phase is over."""

    def end(self) -> None:
        """Nothing will follow."""


class _Lines:
    def step(self, title: str, fraction: float | None) -> None:
        """Only finished phases are worth a line of a log."""

    def finished(self, title: str, seconds: float) -> None:
        print(f"pyro: {title} ({duration(seconds)})", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Lines need no end."""


class _Terminal:
    def __init__(self, transient: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress as Live
        from rich.progress import ProgressColumn, SpinnerColumn
        from rich.text import Text

        class Title(ProgressColumn):
            def render(self, task: Task) -> Text:
                percent = f"  {task.percentage:.0f} %" if task.percentage and not task.finished else ""
                return Text.assemble(
                    task.description, (f"{percent}  {duration(task.elapsed or 0)}", "dim"), overflow="ellipsis"
                )

        self._live: Final = Live(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            Title(),
            console=Console(stderr=True),
            transient=transient,
        )
        self._task: TaskID | None = None
        self._live.start()

    def step(self, title: str, fraction: float | None) -> None:
        total = None if fraction is None else 1.0
        if self._task is None:
            self._task = self._live.add_task(title, total=total)
        # A task at its total would count as finished before its phase is.
        self._live.update(self._task, description=title, total=total, completed=min(fraction or 0.0, 0.999))

    def finished(self, title: str, seconds: float) -> None:
        if self._task is not None:
            self._live.update(self._task, description=title, total=1.0, completed=1.0)
            self._live.stop_task(self._task)
            self._task = None

    def end(self) -> None:
        self._live.stop()
