from __future__ import annotations

import hashlib
import os
import resource
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from itertools import count
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import InvalidArgument
from pyro_async.operations import ExecOutput, ExecResult, ExecStarted
from pyro_async.transport import daemon_status
from tests.contract.conftest import Guest
from tests.contract.requirements import requirement
from tests.support.eventually import eventually

MIB = 1024 * 1024


@pytest.fixture
def ws(workspace_running: str) -> str:
    return workspace_running


# --- what is run ------------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
@requirement("exec-argv")
async def test_a_list_is_run_without_a_shell(client: AsyncPyro, ws: str) -> None:
    result = await client.exec_workspace(ws, ["printf", "%s|", "a b", "$HOME", "*", "", "ü\n"])
    assert (result.exit_code, result.stdout) == (0, "a b|$HOME|*||ü\n|")


@requirement("exec-string")
async def test_a_string_is_run_by_the_shell(client: AsyncPyro, ws: str) -> None:
    result = await client.exec_workspace(ws, "for i in 1 2; do printf $i; done; echo $((6 * 7)) | cat")
    assert result.stdout == "1242\n"
    assert result.command == "for i in 1 2; do printf $i; done; echo $((6 * 7)) | cat"


@requirement("exec-status")
@pytest.mark.parametrize("status", [0, 1, 77, 255])
async def test_the_exit_status_is_the_commands_own(client: AsyncPyro, ws: str, status: int) -> None:
    result = await client.exec_workspace(ws, f"exit {status}")
    assert (result.exit_code, result.signal, result.timed_out, result.cancelled) == (status, None, False, False)


@requirement("exec-status")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
async def test_a_signal_that_ended_the_command_is_told(client: AsyncPyro, ws: str, number: int) -> None:
    result = await client.exec_workspace(ws, f"kill -{int(number)} $$")
    assert (result.exit_code, result.signal) == (128 + number, number)


@requirement("exec-not-found")
async def test_a_missing_command_ends_with_127(client: AsyncPyro, ws: str) -> None:
    for command in (["no-such-command"], ["/no/such/command"], "no-such-command"):
        result = await client.exec_workspace(ws, command)
        assert result.exit_code == 127
        assert "no" in result.stderr


@requirement("exec-not-found")
async def test_a_file_that_may_not_be_executed_ends_with_126(client: AsyncPyro, ws: str) -> None:
    await client.exec_workspace(ws, "echo true >plain; chmod 644 plain")
    assert (await client.exec_workspace(ws, ["./plain"])).exit_code == 126
    assert (await client.exec_workspace(ws, ["/"])).exit_code == 126


@requirement("exec-cwd")
async def test_a_command_runs_where_it_is_told(client: AsyncPyro, ws: str) -> None:
    await client.exec_workspace(ws, "mkdir -p sub && touch sub/here")
    assert (await client.exec_workspace(ws, "ls", cwd="/workspace/sub")).stdout == "here\n"
    assert (await client.exec_workspace(ws, "pwd; echo $PWD", cwd="/usr")).stdout == "/usr\n/usr\n"
    assert (await client.exec_workspace(ws, "touch here && ls sub")).stdout == "here\n"


@requirement("exec-cwd")
async def test_a_missing_directory_is_refused(client: AsyncPyro, ws: str) -> None:
    with pytest.raises(InvalidArgument, match="/no/such") as caught:
        await client.exec_workspace(ws, "true", cwd="/no/such")
    assert "create it first" in caught.value.hint


@requirement("exec-env")
async def test_variables_are_added_to_a_default_environment(
    client: AsyncPyro, ws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTS_SECRET", "leaked")
    result = await client.exec_workspace(ws, "env", env={"GIVEN": "a = ü\nb", "LANG": "C"})
    lines = dict(line.partition("=")[::2] for line in result.stdout.splitlines())
    assert lines["GIVEN"] == "a = ü"
    assert lines["LANG"] == "C"
    assert lines["HOME"] == "/root"
    assert "/usr/bin" in lines["PATH"]
    assert "leaked" not in result.stdout


@requirement("exec-env")
@pytest.mark.parametrize("name", ["", "1X", "A-B", "A=B", "A" * 65, "Ä"])
async def test_what_is_no_name_of_a_variable_is_refused(client: AsyncPyro, ws: str, name: str) -> None:
    with pytest.raises(InvalidArgument, match="env"):
        await client.exec_workspace(ws, "true", env={name: "x"})


@requirement("exec-user")
@pytest.mark.skipif(os.getuid() != 0, reason="the in-memory guest switches users only as root")
@pytest.mark.parametrize(("user", "ids"), [("root", "0 0"), ("nobody", "65534 65534"), ("1234:4321", "1234 4321")])
async def test_a_command_runs_as_the_user_it_is_told(client: AsyncPyro, ws: str, user: str, ids: str) -> None:
    result = await client.exec_workspace(ws, "echo $(id -u) $(id -g)", user=user, cwd="/")
    assert result.stdout == f"{ids}\n"


@requirement("exec-user")
async def test_an_unknown_user_is_refused(client: AsyncPyro, ws: str) -> None:
    with pytest.raises(InvalidArgument, match="no-such-user"):
        await client.exec_workspace(ws, "true", user="no-such-user")


@requirement("exec-text")
@pytest.mark.parametrize("text", ["a\0b", "\udcff"], ids=["nul", "surrogate"])
async def test_text_no_program_can_receive_is_refused(client: AsyncPyro, ws: str, text: str) -> None:
    before = (await client.status_workspace(ws)).command_count
    refused: list[Callable[[], Coroutine[None, None, ExecResult]]] = [
        lambda: client.exec_workspace(ws, ["echo", text]),
        lambda: client.exec_workspace(ws, f"echo {text}"),
        lambda: client.exec_workspace(ws, "true", cwd=f"/{text}"),
        lambda: client.exec_workspace(ws, "true", env={"A": text}),
    ]
    for attempt in refused:
        with pytest.raises(InvalidArgument, match=r"NUL|UTF-8"):
            await attempt()
    assert (await client.status_workspace(ws)).command_count == before


@requirement("exec-text")
@pytest.mark.parametrize("command", ["", [], [""]], ids=repr)
async def test_an_empty_command_is_refused(client: AsyncPyro, ws: str, command: str | list[str]) -> None:
    with pytest.raises(InvalidArgument):
        await client.exec_workspace(ws, command)


@requirement("exec-text")
async def test_a_value_of_the_wrong_type_is_refused(client: AsyncPyro, ws: str) -> None:
    for wrong in (["echo", Path("x")], ["echo", 1], 5):
        with pytest.raises((InvalidArgument, TypeError)):
            await client.exec_workspace(ws, wrong)  # type: ignore[arg-type]


@requirement("exec-long-argv")
async def test_two_megabytes_of_arguments_arrive(client: AsyncPyro, ws: str) -> None:
    arguments = [chr(ord("a") + number) * 100_000 for number in range(19)]
    script = 'n=0; for a; do n=$((n + ${#a})); done; echo "$# $n"'
    result = await client.exec_workspace(ws, ["sh", "-c", script, "sh", *arguments])
    assert result.stdout == "19 1900000\n"


@requirement("exec-long-argv")
@pytest.mark.parametrize(
    "arguments", [["x" * 200_000], ["y" * 100_000] * 40, ["z" * 17_000_000]], ids=["one", "sum", "wire"]
)
async def test_more_arguments_than_the_kernel_takes_are_refused(
    client: AsyncPyro, ws: str, arguments: list[str]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.exec_workspace(ws, ["true", *arguments])
    assert "stdin or a file" in caught.value.hint
    assert (await client.exec_workspace(ws, "true")).exit_code == 0


# --- output -----------------------------------------------------------------------------------------------------------


@requirement("exec-streams")
async def test_stdout_and_stderr_keep_apart(client: AsyncPyro, ws: str) -> None:
    result = await client.exec_workspace(ws, "for i in 1 2 3; do echo out $i; echo err $i >&2; done")
    assert result.stdout == "out 1\nout 2\nout 3\n"
    assert result.stderr == "err 1\nerr 2\nerr 3\n"


@pytest.mark.both_loops
@requirement("exec-events")
async def test_events_come_while_the_command_runs(client: AsyncPyro, ws: str) -> None:
    seen: list[str] = []
    with anyio.fail_after(20):
        async with client.stream_exec(ws, "echo one; read line; echo $line >&2", stdin=_after(seen)) as events:
            async for event in events:
                if isinstance(event, ExecOutput):
                    seen.append(f"{event.stream}: {event.data.decode()}")
                else:
                    seen.append(type(event).__name__)
    assert seen == ["ExecStarted", "stdout: one\n", "stderr: two\n", "ExecResult"]


async def _after(seen: list[str]) -> AsyncGenerator[bytes, None]:
    """Says something once the command has: proof that nothing is held back until its end."""
    await eventually(lambda: len(seen) >= 2)
    yield b"two\n"


@requirement("exec-events")
async def test_a_stream_needs_no_block(client: AsyncPyro, ws: str) -> None:
    events = [event async for event in client.stream_exec(ws, "echo hi")]
    assert [type(event) for event in events] == [ExecStarted, ExecOutput, ExecResult]


@requirement("exec-events")
async def test_events_reach_a_callback_too(client: AsyncPyro, ws: str) -> None:
    kinds: list[str] = []

    async def note(event: object) -> None:
        await anyio.lowlevel.checkpoint()
        kinds.append(type(event).__name__)

    await client.exec_workspace(ws, "echo hi", on_event=note)
    assert kinds == ["ExecStarted", "ExecOutput"]


@requirement("exec-binary")
async def test_every_byte_value_is_streamed_and_decoded_for_results(client: AsyncPyro, ws: str) -> None:
    script = r"""printf '\000\001\377\376valid \303\274'"""
    data = b"\x00\x01\xff\xfevalid \xc3\xbc"
    streamed = b""
    async with client.stream_exec(ws, script) as events:
        async for event in events:
            if isinstance(event, ExecOutput):
                streamed += event.data
            elif isinstance(event, ExecResult):
                assert event.stdout == "\x00\x01\ufffd\ufffdvalid ü"
    assert streamed == data


@requirement("exec-inline-output")
async def test_a_result_holds_head_and_tail_of_long_output(client: AsyncPyro, ws: str) -> None:
    result = await client.exec_workspace(ws, "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last")
    assert result.stdout.startswith("first\nxxx")
    assert result.stdout.endswith("xxx\nlast\n")
    assert "bytes left out" in result.stdout
    assert MIB <= len(result.stdout) < MIB + 100
    assert (result.stdout_truncated, result.stderr_truncated) == (True, False)


def _counted(size: int) -> bytes:
    """What ``_COUNT`` prints: binary, and different everywhere."""
    data = b"\0".join(str(number).encode() for number in range(1, size // 7))
    assert len(data) > size
    return data[:size]


def _volume(guest: Guest) -> int:
    """How much is much: less where nothing but this process lies between command and caller."""
    return 64 * MIB if guest.way != "direct" else 16 * MIB


async def _resident(guest: Guest) -> int:
    """Bytes of memory that client and daemon hold."""
    pids = {os.getpid()}
    if guest.way == "vm":
        assert guest.home is not None
        status = await daemon_status(guest.home)
        assert status is not None
        pids.add(status.pid)
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * resource.getpagesize()


@requirement("exec-large-output")
async def test_much_output_arrives_whole_in_bounded_memory_however_slowly_read(
    guest: Guest, client: AsyncPyro, ws: str
) -> None:
    size = _volume(guest)
    expected = hashlib.sha256(_counted(size)).hexdigest()
    command = f"seq 1 {size // 7} | tr '\\n' '\\0' | head -c {size}"
    digest, total, peak = hashlib.sha256(), 0, 0
    before = await _resident(guest)
    with anyio.fail_after(60):
        async with client.stream_exec(ws, command) as events:
            async for event in events:
                if isinstance(event, ExecOutput):
                    digest.update(event.data)
                    total += len(event.data)
                    if total // (4 * MIB) != (total - len(event.data)) // (4 * MIB):
                        await anyio.sleep(0.05)
                        peak = max(peak, await _resident(guest) - before)
    assert (total, digest.hexdigest()) == (size, expected)
    assert peak < 48 * MIB


# --- input ------------------------------------------------------------------------------------------------------------


@requirement("exec-stdin")
async def test_the_end_of_stdin_ends_cat(client: AsyncPyro, ws: str) -> None:
    for stdin in (b"bytes \xff\0", "text ü", b""):
        async with client.stream_exec(ws, ["cat"], stdin=stdin) as events:
            output = b"".join([event.data async for event in events if isinstance(event, ExecOutput)])
        assert output == (stdin.encode() if isinstance(stdin, str) else stdin)


@requirement("exec-stdin")
async def test_without_stdin_a_reader_ends_at_once(client: AsyncPyro, ws: str) -> None:
    with anyio.fail_after(10):
        assert (await client.exec_workspace(ws, "cat; echo end")).stdout == "end\n"


@requirement("exec-stdin")
async def test_much_stdin_arrives_whole(guest: Guest, client: AsyncPyro, ws: str) -> None:
    data = _counted(_volume(guest))

    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 300_000):
            yield data[start : start + 300_000]

    with anyio.fail_after(60):
        result = await client.exec_workspace(ws, "sha256sum", stdin=source())
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


@requirement("exec-unread-stdin")
async def test_a_command_that_reads_no_stdin_ends(client: AsyncPyro, ws: str) -> None:
    with anyio.fail_after(20):
        result = await client.exec_workspace(ws, "echo done", stdin=bytes(8 * MIB))
        assert (result.exit_code, result.stdout) == (0, "done\n")
        result = await client.exec_workspace(ws, "head -c 5", stdin=b"12345678" * MIB)
        assert result.stdout == "12345"


@requirement("exec-unread-stdin")
async def test_an_input_that_never_comes_holds_nothing_up(client: AsyncPyro, ws: str) -> None:
    closed = anyio.Event()

    async def silent() -> AsyncIterator[bytes]:
        try:
            await anyio.sleep_forever()
            yield b""
        finally:
            closed.set()

    with anyio.fail_after(10):
        assert (await client.exec_workspace(ws, "echo done", stdin=silent())).stdout == "done\n"
        await closed.wait()


@requirement("exec-stdin")
async def test_an_input_that_fails_kills_the_command_and_raises_its_own_error(client: AsyncPyro, ws: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ZeroDivisionError

    with anyio.fail_after(10):
        with pytest.raises(ZeroDivisionError):
            await client.exec_workspace(ws, ["cat"], stdin=broken())
        with pytest.raises(ZeroDivisionError):
            async with client.stream_exec(ws, ["cat"], stdin=broken()) as events:
                async for _ in events:
                    pass
        assert (await client.exec_workspace(ws, "echo on")).stdout == "on\n"


# --- many -------------------------------------------------------------------------------------------------------------


@requirement("exec-concurrent")
async def test_a_hundred_commands_run_beside_a_long_one(client: AsyncPyro, ws: str) -> None:
    outputs: dict[int, str] = {}
    ticks: list[str] = []

    async def numbers() -> AsyncIterator[bytes]:
        for number in count():
            over = len(outputs) == 100
            yield f"{number}\n".encode()
            if over:  # so the last one is asked for, and echoed, after everything else
                return
            await anyio.sleep(0.01)

    async def run_long() -> None:
        result = await client.exec_workspace(ws, "while read line; do echo $line; done", stdin=numbers())
        ticks.extend(result.stdout.split())

    async def run(number: int) -> None:
        outputs[number] = (await client.exec_workspace(ws, f"echo {number}; exit {number}")).stdout

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_long)
            for number in range(100):
                tasks.start_soon(run, number)
    assert outputs == {number: f"{number}\n" for number in range(100)}
    assert ticks == [str(number) for number in range(len(ticks))]
    assert len(ticks) > 1


@requirement("exec-history")
async def test_commands_are_kept_with_their_output(client: AsyncPyro, ws: str) -> None:
    first = await client.exec_workspace(ws, "echo out; echo err >&2; exit 4")
    second = await client.exec_workspace(ws, ["echo", "second"])
    assert second.sequence == first.sequence + 1
    logs = await client.logs_workspace(ws, limit=2)
    assert logs.entries == [first, second]
    status = await client.status_workspace(ws)
    assert status.command_count == second.sequence
    assert status.last_command is not None
    assert (status.last_command.exec_id, status.last_command.exit_code) == (second.exec_id, 0)


@requirement("exec-history")
async def test_a_history_of_large_commands_and_outputs_can_still_be_read(client: AsyncPyro, ws: str) -> None:
    for _ in range(12):
        await client.exec_workspace(ws, ["sh", "-c", "head -c 100000 /dev/urandom", *["x" * 100_000] * 15])
    logs = await client.logs_workspace(ws, limit=1000)
    assert logs.entries
    sequences = [entry.sequence for entry in logs.entries]
    assert sequences == list(range(sequences[0], sequences[-1] + 1))
    assert sequences[-1] == (await client.status_workspace(ws)).command_count
