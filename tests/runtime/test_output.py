from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pyro_async.errors import HostDiskFull
from pyro_async.runtime import output
from pyro_async.runtime.output import Excerpt, Journal, OutputStore, Record
from pyro_async.wire.guest import STDERR, STDOUT

Opened = Callable[..., Callable[[str], Journal]]

SEGMENT = 1000


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SEGMENT_SIZE", SEGMENT)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens a store, as a process that starts does; returns how to get at its journals."""
    written: list[Journal] = []

    def open_store(budget: int = 10 * SEGMENT) -> Callable[[str], Journal]:
        store = OutputStore(tmp_path, budget)

        def journal(exec_id: str) -> Journal:
            written.append(store.journal(exec_id, writing=True))
            return written[-1]

        return journal

    yield open_store
    for journal in written:
        journal.close()


def stored(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*"))


async def fill(journal: Journal, count: int, size: int = 95) -> None:
    for number in range(count):
        await journal.append(STDOUT if number % 3 else STDERR, number.to_bytes(4, "big") + bytes(size - 4))


def numbers(records: list[Record]) -> list[int]:
    return [int.from_bytes(record.data[:4], "big") for record in records]


async def everything(journal: Journal, cursor: int = 0) -> list[Record]:
    return [record async for record in journal.follow(cursor)]


async def test_records_come_back_as_they_were_written(opened: Opened) -> None:
    journal = opened()("a1")
    await journal.append(STDOUT, b"one")
    await journal.append(STDERR, b"two")
    journal.close()
    assert [(record.channel, record.data) for record in journal.records()] == [
        (STDOUT, b"one"),
        (STDERR, b"two"),
    ]
    assert journal.counts == {STDOUT: 3, STDERR: 3}
    assert list(journal.records())[-1].end == journal.end


async def test_output_is_spread_over_segments_and_read_across_them(opened: Opened, tmp_path: Path) -> None:
    journal = opened()("a1")
    await fill(journal, 35)
    assert len(list(tmp_path.glob("*.log"))) == 4
    assert numbers(list(journal.records())) == list(range(35))


async def test_every_cursor_leads_to_the_rest(opened: Opened) -> None:
    journal = opened()("a1")
    await fill(journal, 25)
    journal.close()
    for record in journal.records():
        rest = await everything(journal, record.end)
        assert numbers(rest) == list(range(int.from_bytes(record.data[:4], "big") + 1, 25))


async def test_a_follower_gets_what_is_there_and_what_comes(opened: Opened) -> None:
    journal = opened()("a1")
    await fill(journal, 5)
    got: list[Record] = []

    async def follow() -> None:
        got.extend(await everything(journal))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        await journal.append(STDOUT, b"late")
        await anyio.wait_all_tasks_blocked()
        journal.close()
    assert len(got) == 6
    assert got[-1].data == b"late"


# --- the budget -------------------------------------------------------------------------------------------------------


async def test_above_the_budget_the_oldest_goes(opened: Opened, tmp_path: Path) -> None:
    journal = opened(3 * SEGMENT)("a1")
    await fill(journal, 100)
    assert stored(tmp_path) <= 3 * SEGMENT
    kept = numbers(list(journal.records()))
    assert kept == list(range(kept[0], 100))
    assert journal.begin == kept[0] * 95


async def test_the_oldest_of_all_commands_goes_first(opened: Opened) -> None:
    journal_of = opened(3 * SEGMENT)
    first = journal_of("a1")
    await fill(first, 20)
    first.close()
    second = journal_of("b2")
    await fill(second, 25)
    assert list(first.records()) == []
    assert numbers(list(second.records())) == list(range(25))


async def test_what_a_live_reader_has_not_read_is_never_dropped(opened: Opened) -> None:
    journal = opened(2 * SEGMENT)("a1")
    got: list[int] = []

    async def read_slowly() -> None:
        async with aclosing(journal.follow()) as records:
            async for record in records:
                got.append(int.from_bytes(record.data[:4], "big"))
                await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_slowly)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(10):
            await fill(journal, 300)
        journal.close()
    assert got == list(range(300))


async def stalled_reader(journal: Journal) -> AsyncGenerator[Record, None]:
    """A reader that took one record and asks for no more."""
    records = journal.follow()
    await anext(records)
    return records


async def test_a_writer_waits_for_its_own_reader_and_goes_on_when_that_leaves(opened: Opened, tmp_path: Path) -> None:
    journal = opened(2 * SEGMENT)("a1")
    await fill(journal, 1)
    async with aclosing(await stalled_reader(journal)) as records:
        with anyio.move_on_after(0.05) as waited:
            await fill(journal, 1000)
        assert waited.cancelled_caught
        assert stored(tmp_path) <= 3 * SEGMENT
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill, journal, 100)
            await anyio.wait_all_tasks_blocked()
            await records.aclose()
    assert stored(tmp_path) <= 2 * SEGMENT


async def test_a_stalled_reader_of_one_command_stops_no_other_command(opened: Opened, tmp_path: Path) -> None:
    journal_of = opened(2 * SEGMENT)
    first = journal_of("a1")
    await fill(first, 20)
    async with aclosing(await stalled_reader(first)):
        second = journal_of("b2")
        with anyio.fail_after(5):
            await fill(second, 500)
    assert stored(tmp_path) <= 4 * SEGMENT
    assert numbers(list(first.records())) == list(range(20))


async def test_many_commands_at_once_over_the_budget_wait_for_nobody(opened: Opened, tmp_path: Path) -> None:
    journal_of = opened(2 * SEGMENT)
    journals = [journal_of(f"{number:02x}") for number in range(20)]
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for journal in journals:
                tasks.start_soon(fill, journal, 50)
    assert stored(tmp_path) <= (2 + len(journals)) * SEGMENT


# --- a later process --------------------------------------------------------------------------------------------------


async def test_a_later_process_reads_what_an_earlier_one_wrote(opened: Opened) -> None:
    before = opened()("a1")
    await fill(before, 35)
    before.close()
    after = opened()("a1")
    assert numbers(list(after.records())) == list(range(35))
    assert (after.counts, after.end) == (before.counts, before.end)


async def test_a_later_process_goes_on_writing_where_the_earlier_stopped(opened: Opened) -> None:
    before = opened()("a1")
    await fill(before, 15)
    before.close()
    after = opened()("a1")
    await after.append(STDERR, (15).to_bytes(4, "big"))
    after.close()
    assert numbers(list(after.records())) == list(range(16))


async def test_what_was_written_before_counts_even_where_it_was_dropped(opened: Opened) -> None:
    before = opened(2 * SEGMENT)("a1")
    await fill(before, 100)
    before.close()
    after = opened(2 * SEGMENT)("a1")
    assert (after.counts, after.end) == (before.counts, before.end)


@pytest.mark.parametrize("lost", range(1, 100, 7))
async def test_a_record_that_a_crash_cut_off_is_dropped_as_a_whole(opened: Opened, tmp_path: Path, lost: int) -> None:
    before = opened()("a1")
    await fill(before, 13)
    before.close()
    last = max(tmp_path.glob("*.log"), key=lambda path: path.name)
    os.truncate(last, last.stat().st_size - lost)
    after = opened()("a1")
    assert numbers(list(after.records())) == list(range(12))
    assert sum(after.counts.values()) == 12 * 95
    await after.append(STDOUT, (12).to_bytes(4, "big"))
    assert numbers(list(after.records())) == list(range(13))


async def test_an_ended_journal_of_an_earlier_process_is_complete_and_may_be_dropped(
    opened: Opened, tmp_path: Path
) -> None:
    before = opened()("a1")
    await fill(before, 15)
    before.close()
    store = OutputStore(tmp_path, 2 * SEGMENT)
    with anyio.fail_after(5):
        assert len(await everything(store.journal("a1"))) == 15
    with closing(store.journal("b2", writing=True)) as newer:
        await fill(newer, 40)
    assert stored(tmp_path) <= 2 * SEGMENT
    assert list(store.journal("a1").records()) == []


async def test_the_order_of_segments_does_not_depend_on_their_times(opened: Opened, tmp_path: Path) -> None:
    before = opened()("a1")
    await fill(before, 95)
    before.close()
    for path in tmp_path.glob("*.log"):
        os.utime(path, (1, 1))
    after = opened()("a1")
    assert numbers(list(after.records())) == list(range(95))


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partly", [0, 3, 50])
async def test_on_a_full_disk_nothing_of_the_record_is_kept(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, partly: int
) -> None:
    journal = opened()("a1")
    await fill(journal, 3)

    def full(descriptor: int, parts: tuple[bytes, bytes]) -> int:
        if not partly:
            raise OSError(errno.ENOSPC, "full")
        return os.write(descriptor, b"".join(parts)[:partly])

    with monkeypatch.context() as patch:
        patch.setattr("pyro_async.runtime.output.os.writev", full)
        with pytest.raises(HostDiskFull):
            await journal.append(STDOUT, bytes(90))
    assert numbers(list(journal.records())) == list(range(3))
    await journal.append(STDOUT, (3).to_bytes(4, "big"))
    assert numbers(list(journal.records())) == list(range(4))


async def test_a_disk_too_full_for_a_new_file_is_told_as_such(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened()("a1")

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("pyro_async.runtime.output.os.open", full)
        with pytest.raises(HostDiskFull):
            await journal.append(STDOUT, b"x")
    await journal.append(STDOUT, b"y")
    assert [record.data for record in journal.records()] == [b"y"]


# --- excerpts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_an_excerpt_has_all_of_a_short_text_and_head_and_tail_of_a_long_one(size: int, piece: int) -> None:
    data = bytes(ord("a") + number % 26 for number in range(size))
    excerpt = Excerpt(100)
    for start in range(0, size, piece):
        excerpt.add(data[start : start + piece])
    text = data.decode()
    if size <= 100:
        assert (excerpt.text(), excerpt.truncated) == (text, False)
    else:
        assert excerpt.text() == f"{text[:50]}\n[… {size - 100} bytes left out …]\n{text[-50:]}"
        assert excerpt.truncated
