"""Output cut to what a model can take: head and tail stay, at line boundaries, and the cut is said."""

from __future__ import annotations

from functools import singledispatch
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pyro_async.operations import ExecResult, Result, WorkspaceLogs

__all__ = ["DEFAULT_OUTPUT_CHARS", "OutputChars", "cut", "shortened"]

DEFAULT_OUTPUT_CHARS: Final = 20_000
OutputChars = Annotated[int, Meta(ge=1000, le=1_000_000)]

#: Characters that the line which says what was left out may take.
_NOTE_ROOM: Final = 100


def cut(text: str, limit: int) -> str:
    """Returns ``text`` if it has at most ``limit`` characters, else its head and its tail around a line that says so.

    Lines stay whole unless that would waste more than half of the room.
    """
    if len(text) <= limit:
        return text
    half = max(limit - _NOTE_ROOM, 0) // 2
    head, tail = half, len(text) - half
    if (boundary := text.rfind("\n", half // 2, head)) >= 0:
        head = boundary + 1
    if (boundary := text.find("\n", tail - 1, tail + half // 2)) >= 0:
        tail = boundary + 1
    before = "" if text[:head].endswith("\n") or not head else "\n"
    lines = text.count("\n", head, tail)
    return f"{text[:head]}{before}[... {tail - head:,} characters, {lines:,} lines left out ...]\n{text[tail:]}"


@singledispatch
def shortened(result: Result, limit: int) -> Result:
    """Returns ``result`` with at most ``limit`` characters of each output; of a history, of all outputs together."""
    return result


@shortened.register
def _(result: ExecResult, limit: int) -> Result:
    return msgspec.structs.replace(
        result,
        stdout=cut(result.stdout, limit),
        stderr=cut(result.stderr, limit),
        stdout_truncated=result.stdout_truncated or len(result.stdout) > limit,
        stderr_truncated=result.stderr_truncated or len(result.stderr) > limit,
    )


@shortened.register
def _(result: WorkspaceLogs, limit: int) -> Result:
    share = limit // max(2 * len(result.entries), 1)
    return msgspec.structs.replace(result, entries=[shortened(entry, share) for entry in result.entries])
