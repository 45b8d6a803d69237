"""What commands print on standard output: JSON, tables and field lists.

On a terminal tables are rich's, elsewhere aligned plain text, so that pipes see no escape sequences. Text that a guest
or a user supplied is made printable first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ago",
    "clock",
    "duration",
    "is_terminal",
    "note",
    "one_line",
    "print_fields",
    "print_json",
    "print_table",
    "print_tree",
    "printable",
    "size",
    "table",
]

T = TypeVar("T")

#: Cells of exactly this text are coloured.
_STYLES: Final = {
    "started": "green",
    "built": "green",
    "ok": "green",
    "failed": "bold red",
    "created": "yellow",
    "stopped": "dim",
    "-": "dim",
}


def is_terminal(descriptor: int) -> bool:
    """Whether a person is likely to look at this descriptor."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def print_json(value: object) -> None:
    """Prints one object: on a line of its own, or indented for a terminal."""
    data = msgspec.json.encode(value)
    if is_terminal(1):
        data = msgspec.json.format(data, indent=2)
    print(data.decode(), flush=True)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows below headings."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if is_terminal(1):
        from rich.console import Console

        Console().print(table(headings, cells))
        return
    widths = [max(len(row[column]) for row in [list(headings), *cells]) for column in range(len(headings))]
    for row in [list(headings), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Rows below headings, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    return made


def print_tree(root: T, label: Callable[[T], str], children: Callable[[T], Iterable[T]]) -> None:
    """Prints what hangs below ``root``."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def grow(tree: Tree, node: T) -> Tree:
        for child in children(node):
            grow(tree.add(Text(printable(label(child)))), child)
        return tree

    Console(soft_wrap=True).print(grow(Tree(Text(printable(label(root)))), root))


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, one a line; a value of several lines is indented below its name."""
    width = max(len(name) for name, _ in fields)
    bold, plain = ("\x1b[1m", "\x1b[0m") if is_terminal(1) and not os.environ.get("NO_COLOR") else ("", "")
    for name, value in fields:
        lines = [printable(line) for line in value.splitlines()] or [""]
        text = lines[0] if len(lines) == 1 else "".join(f"\n    {line}" for line in lines)
        print(f"{bold}{name.ljust(width)}{plain}  {text}".rstrip())


def note(text: str) -> None:
    """Says something about the command line's own work, on stderr and on one line."""
    print(f"pyro: {one_line(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Escapes what could drive a terminal: control and format characters, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def one_line(text: str) -> str:
    """Joins the lines of a text and makes it printable."""
    return printable(" | ".join(line.strip() for line in text.splitlines() if line.strip()))


def size(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(seconds: float) -> str:
    """A span of time for people, with the precision that fits its length."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"


def ago(moment: float) -> str:
    """How long ago a time since the epoch was."""
    elapsed = time.time() - moment
    return "now" if elapsed < 1 else f"{duration(round(elapsed)).replace('.0 s', ' s')} ago"


def clock(moment: float) -> str:
    """A time since the epoch in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
