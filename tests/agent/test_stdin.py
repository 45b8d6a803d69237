"""Standard input."""

from __future__ import annotations

import anyio
import pytest

from tests.agent.conftest import Bench, Host

BLOCK = bytes(range(256)) * 1024


async def test_input_arrives_complete_and_its_end_ends_cat(host: Host) -> None:
    run = host.start("sha256sum", stdin=True)

    async def feed() -> None:
        for _ in range(64):
            await run.stream.send(BLOCK)
        run.stream.send_eof()

    import hashlib

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed)
        assert (await run.finish()).exit_code == 0
    assert run.stdout.split()[0].decode() == hashlib.sha256(BLOCK * 64).hexdigest()


async def test_without_input_a_command_reads_end_of_file(host: Host) -> None:
    assert (await host.start("cat").finish()).exit_code == 0


async def test_a_command_that_does_not_read_holds_the_host_back(host: Host) -> None:
    run = host.start("sleep", "1000", stdin=True)
    sent = 0
    with anyio.move_on_after(0.5):
        while True:
            await run.stream.send(BLOCK)
            sent += len(BLOCK)
    assert sent <= (1 << 20) + len(BLOCK)
    run.stream.cancel()
    assert (await run.finish()).cancelled


async def test_input_for_a_command_that_has_closed_its_end_is_dropped(host: Host) -> None:
    run = host.shell("exec <&-; echo closed; sleep 0.3; exit 6", stdin=True)
    await run.until(b"closed\n")

    async def feed() -> None:
        for _ in range(16):
            await run.stream.send(BLOCK)

    with anyio.fail_after(5):
        await feed()
    assert (await run.finish()).exit_code == 6


async def test_input_goes_on_where_a_lost_link_broke_it_off(configured: Bench) -> None:
    total = BLOCK * 32
    async with configured.connected() as host:
        run = host.start("sh", "-c", "echo up; sleep 0.2; wc -c", exec_id="one", stdin=True)
        await run.until(b"up\n")
        with anyio.move_on_after(0.1):
            await run.stream.send(total)
    async with configured.connected() as host:
        again = host.attach("one")
        await again.step()
        assert again.started is not None
        assert 0 < again.started.stdin_offset < len(total)

        async def feed() -> None:
            assert again.started is not None
            await again.stream.send(total[again.started.stdin_offset :])
            again.stream.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed)
            await again.finish()
    assert again.stdout.split() == [b"up", str(len(total)).encode()]


@pytest.mark.parametrize("size", [64 << 20])
async def test_large_output_is_complete_although_the_host_is_slow(host: Host, size: int) -> None:
    run = host.start("head", "-c", str(size), "/dev/zero")
    received = 0
    while run.exit is None:
        await run.step()
        received += len(run.stdout)
        run.stdout = b""
    assert received == size
