"""Commands and their output across the loss of connections."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from pyro_async.errors import ExecNotFound, InvalidArgument, LinkLost
from pyro_async.wire.guest import Running, RunningExec, Shutdown
from tests.agent.conftest import Bench, Host
from tests.support.memory_guest import memory_pipe

COUNT = "for i in $(seq 1 20000); do echo line $i; done"
LINES = b"".join(b"line %d\n" % number for number in range(1, 20001))


async def running(host: Host) -> dict[str, RunningExec]:
    found = await host.connection.call(Running.method, Running(), list[RunningExec])
    return {entry.exec_id: entry for entry in found}


async def test_a_command_survives_the_link_and_its_output_is_resumed_by_offset(configured: Bench) -> None:
    async with configured.connected() as host:
        first = host.shell(f"echo err >&2; {COUNT}; read x; echo $x; exit 3", exec_id="one", stdin=True)
        await first.until(b"line 100\n")
    stored, errors = first.stdout[:-3], first.stderr
    async with configured.connected() as host:
        assert "one" in await running(host)
        second = host.attach("one", len(stored), len(errors))
        await second.until(b"line 20000\n")
        await second.stream.send(b"done\n")
        ended = await second.finish()
    assert ended.exit_code == 3
    assert stored + second.stdout == LINES + b"done\n"
    assert errors + second.stderr == b"err\n"


async def test_an_exit_waits_for_the_host_to_come_back_until_it_is_forgotten(configured: Bench) -> None:
    async with configured.connected() as host:
        run = host.shell("echo early; sleep 0.2; echo late; exit 5", exec_id="one")
        await run.until(b"early\n")
    await anyio.sleep(0.4)
    async with configured.connected() as host:
        again = host.attach("one", len(b"early\n"))
        assert (await again.finish()).exit_code == 5
        assert again.stdout == b"late\n"
        await host.forget("one")
        assert await running(host) == {}
        with pytest.raises(ExecNotFound):
            await host.attach("one").finish()


async def test_the_same_request_again_attaches_instead_of_running_twice(
    configured: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("once") / "ran"
    for _ in range(2):
        async with configured.connected() as host:
            run = host.shell(f"echo x >> {file}; cat {file}", exec_id="one")
            assert (await run.finish()).exit_code == 0
            assert run.stdout == b"x\n"
    assert file.read_text() == "x\n"


async def test_forgetting_leaves_running_commands_alone(host: Host) -> None:
    run = host.start("cat", exec_id="one", stdin=True)
    await run.step()
    await host.forget("one", "never-existed")
    assert "one" in await running(host)
    run.stream.send_eof()
    await run.finish()


async def test_offsets_that_are_not_held_are_refused(host: Host) -> None:
    run = host.shell("echo four", exec_id="one")
    await run.finish()
    with pytest.raises(InvalidArgument, match="resume stdout at byte 6"):
        await host.attach("one", 6).finish()


async def test_a_later_attach_takes_over(host: Host) -> None:
    first = host.shell("echo begin; read x; echo $x", exec_id="one", stdin=True)
    await first.until(b"begin\n")
    second = host.attach("one", len(b"begin\n"))
    await second.step()
    with pytest.raises(LinkLost, match="taken over"):
        await first.finish()
    await second.stream.send(b"word\n")
    assert (await second.finish()).exit_code == 0
    assert second.stdout == b"word\n"


async def test_a_new_connection_replaces_the_old(configured: Bench) -> None:
    async with configured.connected() as old, configured.connected() as new:
        with pytest.raises(LinkLost):
            await old.start("true").finish()
        assert (await new.start("true").finish()).exit_code == 0


async def test_a_silent_host_stops_only_the_producer(host: Host) -> None:
    flood = host.start("cat", "/dev/zero")
    with anyio.move_on_after(0.5):
        while True:
            await flood.step(grant=False)
    assert len(flood.stdout) <= 1 << 20
    assert (await host.start("true").finish()).exit_code == 0
    flood.stream.cancel()
    flood.stream.grant(len(flood.stdout))
    assert (await flood.finish()).cancelled


async def test_the_next_host_is_noticed_on_a_channel_that_reports_no_end(configured: Bench) -> None:
    near, far = memory_pipe()
    rests: list[bytes] = []

    async def serve_channel() -> None:
        # As on a serial port, whose bytes go on although the host behind it is another.
        rest = b""
        while len(rests) < 2:
            rest = await configured.agent.serve(Unclosed(far), rest)
            rests.append(rest)

    configured.tasks.start_soon(serve_channel)
    async with configured.over(Unclosed(near)) as host:
        assert (await host.start("true").finish()).exit_code == 0
    async with configured.over(Unclosed(near)) as host:
        assert (await host.start("true").finish()).exit_code == 0
    assert rests
    await near.aclose()
    await far.aclose()


class Unclosed(anyio.abc.ByteStream):
    """A channel that has no connections: closing does not reach the other side."""

    def __init__(self, inner: anyio.abc.ByteStream) -> None:
        self._inner = inner

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._inner.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._inner.send(item)

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def test_shutting_down_ends_commands_tells_the_host_and_then_powers_off(configured: Bench) -> None:
    async with configured.connected() as host:
        run = host.shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done")
        await run.until(b"up\n")
        await host.connection.call(Shutdown.method, Shutdown(grace_seconds=5), type(None))
        assert configured.system.sealed
        assert (await run.finish()).exit_code == 3
        assert run.stdout == b"up\nbye\n"
        await configured.system.powered_off.wait()


async def test_a_command_that_was_dropped_unasked_is_never_run_again(
    configured: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_agent.server._KEPT_COUNT", 1)
    script = f"echo ran >>{tmp_path}/runs"
    async with configured.connected() as host:
        await host.shell(script, exec_id="one").finish()
        await host.shell("true", exec_id="two").finish()
        with pytest.raises(ExecNotFound, match="which has ended"):
            await host.shell(script, exec_id="one").finish()
    assert (tmp_path / "runs").read_text() == "ran\n"
