"""The link breaks at any moment; no byte is lost or doubled, and no command runs twice."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.operations import ExecOutput, ExecResult
from tests.support.memory_guest import MemoryDriver

pytestmark = pytest.mark.usefixtures("no_task_left", "workspace_running")

#: Deterministic bytes that differ everywhere, so that a gap or a repetition shows.
COUNTING = "i=0; while [ $i -lt {count} ]; do echo $i; i=$((i+1)); done"


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def break_at_random(guests: MemoryDriver, seed: int) -> None:
    generator = random.Random(seed)
    while True:
        await anyio.sleep(generator.uniform(0, 0.03))
        await guests.newest.break_link()


@pytest.mark.parametrize("seed", range(4))
async def test_output_is_byte_exact_over_broken_links(
    client: AsyncPyro, guests: MemoryDriver, tmp_path: Path, seed: int
) -> None:
    data = pattern(6 * 1024 * 1024)
    (tmp_path / "data").write_bytes(data)
    digest = hashlib.sha256()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(break_at_random, guests, seed)
        with anyio.fail_after(30):
            script = f"for i in 1 2 3 4; do cat {tmp_path}/data; sleep 0.02; done"
            async with client.stream_exec("ws", script) as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        digest.update(event.data)
                    elif isinstance(event, ExecResult):
                        assert event.exit_code == 0
        tasks.cancel_scope.cancel()
    assert guests.newest.connections > 2
    assert digest.hexdigest() == hashlib.sha256(data * 4).hexdigest()


@pytest.mark.parametrize("seed", range(4))
async def test_stdin_is_byte_exact_over_broken_links(client: AsyncPyro, guests: MemoryDriver, seed: int) -> None:
    data = pattern(4 * 1024 * 1024)

    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]
            await anyio.sleep(0.002)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(break_at_random, guests, seed)
        with anyio.fail_after(30):
            result = await client.exec_workspace("ws", "sha256sum", stdin=source())
        tasks.cancel_scope.cancel()
    assert guests.newest.connections > 2
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("seed", range(4))
async def test_both_directions_at_once_over_broken_links(client: AsyncPyro, guests: MemoryDriver, seed: int) -> None:
    """A command that reads on only when its output is taken must not lock up with the stdin sent again."""
    data = pattern(5 * 1024 * 1024)
    received = bytearray()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(break_at_random, guests, seed)
        with anyio.fail_after(30):
            async with client.stream_exec("ws", ["cat"], stdin=data) as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        received += event.data
                        if len(received) % 7 == 0:
                            await anyio.sleep(0.003)
        tasks.cancel_scope.cancel()
    assert bytes(received) == data


@pytest.mark.parametrize("seed", range(3))
async def test_a_command_runs_once_however_often_the_link_breaks(
    client: AsyncPyro, guests: MemoryDriver, tmp_path: Path, seed: int
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(break_at_random, guests, seed)
        with anyio.fail_after(30):
            for number in range(60):
                result = await client.exec_workspace("ws", f"echo {number} >>{tmp_path}/ran; echo {number}")
                assert (result.exit_code, result.stdout) == (0, f"{number}\n")
        tasks.cancel_scope.cancel()
    assert (tmp_path / "ran").read_text().split() == [str(number) for number in range(60)]


async def test_the_end_of_stdin_survives_a_break_while_the_link_is_down(
    client: AsyncPyro, guests: MemoryDriver
) -> None:
    machine, sending, may_end = guests.newest, anyio.Event(), anyio.Event()
    serve, machine_back = machine.serve, anyio.Event()

    async def serve_later(stream: anyio.abc.ByteStream) -> None:
        await machine_back.wait()
        assert serve is not None
        await serve(stream)

    async def source() -> AsyncIterator[bytes]:
        yield b"all there is"
        sending.set()
        await may_end.wait()

    async def run() -> None:
        result = await client.exec_workspace("ws", ["cat"], stdin=source())
        assert result.stdout == "all there is"

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await sending.wait()
            machine.serve = serve_later
            await machine.break_link()
            may_end.set()
            await anyio.wait_all_tasks_blocked()
            machine_back.set()


async def test_cancelling_while_the_link_is_down_kills_the_command(client: AsyncPyro, guests: MemoryDriver) -> None:
    machine = guests.newest
    with anyio.fail_after(10):
        with anyio.CancelScope() as scope:
            async with client.stream_exec("ws", "echo up; sleep 1000") as events:
                async for event in events:
                    if isinstance(event, ExecOutput):
                        await machine.break_link()
                        scope.cancel()
        assert machine.system.leftovers() == []


async def test_cancelling_before_the_guest_has_answered_kills_the_command(
    client: AsyncPyro, guests: MemoryDriver
) -> None:
    with anyio.fail_after(8):
        for delay in (0, 0, 0.0005, 0.001, 0.002, 0.005):
            with anyio.move_on_after(delay):
                await client.exec_workspace("ws", "sleep 1000")
            assert guests.newest.system.leftovers() == []
