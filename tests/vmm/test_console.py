from __future__ import annotations

from pathlib import Path

import pytest

from pyro_async.vmm.console import FILE_BYTES, TAIL_BYTES, ConsoleLog, printable


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\ttext\r\n", "plain\ttext\n"),
        (b"\x1b[1;31mred\x1b[0m \x1b[2J\x1b[H", "red "),
        (b"\x1b]0;title\x07a\x1b]52;c;Zm9v\x1b\\b", "ab"),
        (b"bell\x07 back\x08 null\x00 delete\x7f", "bell back null delete"),
        (b"c1 \xc2\x9b2J", "c1 2J"),
        ("right-to-left \u202e override".encode(), "right-to-left  override"),
        (b"cut \xe2\x82", "cut \ufffd"),
        ("gr\u00fc\u00dfe".encode(), "gr\u00fc\u00dfe"),
        (b"\x1b", ""),
    ],
)
def test_only_newline_and_tab_may_move_the_cursor(data: bytes, text: str) -> None:
    assert printable(data) == text


def test_tail_keeps_the_end(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "console.log")
    console.append(b"a" * TAIL_BYTES)
    console.append(b"end")
    assert console.tail(4) == "aend"
    assert console.tail(0) == ""
    assert len(console.tail(1 << 30)) == TAIL_BYTES


async def test_file_never_outgrows_its_bound_and_ends_with_the_newest(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "console.log")
    for number in range(20):
        console.append(b"%05d\n" % number * 5000)
        await console.flush()
        assert 0 < (tmp_path / "console.log").stat().st_size <= FILE_BYTES
    assert (tmp_path / "console.log").read_bytes().endswith(b"00019\n")


async def test_file_that_cannot_be_written_loses_no_tail(tmp_path: Path) -> None:
    console = ConsoleLog(tmp_path / "missing" / "console.log")
    console.append(b"still here")
    await console.flush()
    assert console.tail(100) == "still here"
