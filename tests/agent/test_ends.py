"""Timeout, cancellation, and what background processes do to a command's end."""

from __future__ import annotations

import os
import time

import anyio
import pytest

from tests.agent.conftest import Bench, Host

# Ignores SIGTERM, leaves its session twice, holds no pipe, and says who it is first.
STUBBORN = """
trap '' TERM
setsid sh -c 'trap "" TERM
    (setsid sh -c "echo \\$\\$ > {file}; exec sleep 1000" </dev/null >/dev/null 2>&1 &)'
while [ ! -s {file} ]; do sleep 0.01; done
echo ready; sleep 1000
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_a_timeout_kills_the_whole_tree_and_keeps_partial_output(host: Host, tmp_path: os.PathLike[str]) -> None:
    file = os.path.join(tmp_path, "pid")
    run = host.shell(STUBBORN.format(file=file), timeout_seconds=1.0)
    ended = await run.finish()
    with open(file) as lines:
        escaped = int(lines.read())
    assert (ended.exit_code, ended.timed_out, ended.cancelled, run.stdout) == (124, True, False, b"ready\n")
    assert not alive(escaped)


async def test_cancelling_kills_the_whole_tree_and_keeps_partial_output(host: Host, tmp_path: os.PathLike[str]) -> None:
    file = os.path.join(tmp_path, "pid")
    run = host.shell(STUBBORN.format(file=file))
    await run.until(b"ready\n")
    with open(file) as lines:
        escaped = int(lines.read())
    assert alive(escaped)
    run.stream.cancel()
    ended = await run.finish()
    assert (ended.exit_code, ended.signal, ended.cancelled, ended.timed_out) == (137, 9, True, False)
    assert not alive(escaped)


async def test_a_cancel_that_comes_with_the_request_is_not_lost(host: Host) -> None:
    run = host.start("sleep", "1000")
    run.stream.cancel()
    assert (await run.finish()).cancelled


async def test_a_cancel_after_the_exit_changes_nothing(configured: Bench) -> None:
    async with configured.connected() as host:
        ended = await host.start("true", exec_id="one").finish()
        again = host.attach("one")
        again.stream.cancel()
        assert await again.finish() == ended
    assert not ended.cancelled


async def test_a_silent_background_process_does_not_hold_up_the_end(host: Host) -> None:
    began = time.monotonic()
    run = host.shell("echo out; sleep 1000 & echo $!")
    assert (await run.finish()).exit_code == 0
    assert time.monotonic() - began < 5
    assert alive(int(run.stdout.split()[1]))


async def test_a_noisy_background_process_does_not_either_and_survives(host: Host) -> None:
    run = host.shell("yes noise & echo $! >&2")
    assert (await run.finish()).exit_code == 0
    pid = int(run.stderr)
    written = read_bytes(pid)
    with anyio.fail_after(10):
        while read_bytes(pid) < written + (1 << 22):  # noqa: ASYNC110 - more than any pipe holds: it is read
            await anyio.sleep(0.01)


def read_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/io") as file:
        return int(dict(line.split(": ") for line in file.read().splitlines())["wchar"])


async def test_output_written_just_before_the_exit_is_complete_even_if_a_child_holds_the_pipe(host: Host) -> None:
    run = host.shell("sleep 1000 & head -c 300000 /dev/zero; exit 4")
    ended = await run.finish()
    assert (len(run.stdout), ended.exit_code) == (300_000, 4)


@pytest.mark.parametrize("timeout", [0.3])
async def test_a_host_that_does_not_read_cannot_prevent_a_timeout(host: Host, timeout: float) -> None:
    run = host.shell("exec cat /dev/zero", timeout_seconds=timeout)
    size = 0
    while size < 1 << 20:
        before = len(run.stdout)
        with anyio.move_on_after(1) as scope:
            await run.step(grant=False)
        if scope.cancelled_caught:
            break
        size += len(run.stdout) - before
    run.stream.grant(len(run.stdout))
    assert (await run.finish()).timed_out
