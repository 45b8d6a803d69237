"""What a command gets, and what the host learns of its end."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from pyro_async.errors import InvalidArgument, WrongState
from tests.agent.conftest import Bench, Host


async def test_output_and_exit_code_arrive_on_their_channels(host: Host) -> None:
    run = host.shell("echo out; echo err >&2; exit 7")
    ended = await run.finish()
    assert (run.stdout, run.stderr, ended.exit_code, ended.signal) == (b"out\n", b"err\n", 7, None)
    assert run.started is not None
    assert run.started.pid > 1
    assert ended.duration_seconds > 0


async def test_a_command_has_the_default_environment_and_its_own_variables(host: Host) -> None:
    run = host.start("env", env={"GREETING": "grüße", "HOME": "/elsewhere"}, cwd="/usr")
    await run.finish()
    variables = dict(line.split("=", 1) for line in run.stdout.decode().splitlines())
    variables.pop("PYRO_TEST_TREE")
    assert variables.keys() == {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD", "GREETING"}
    assert (variables["GREETING"], variables["HOME"], variables["PWD"]) == ("grüße", "/elsewhere", "/usr")


async def test_a_command_starts_with_clean_signals_and_only_its_own_descriptors(host: Host) -> None:
    run = host.shell("grep -E 'Sig(Blk|Ign)' /proc/self/status; ps -o sid= -p $$; echo $$; ls /proc/self/fd")
    await run.finish()
    blocked, ignored, session, pid, *descriptors = run.stdout.decode().splitlines()
    real_time_internals = 1 << 31 | 1 << 32  # the C library's own, which posix_spawn ignores in every child
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) & ~real_time_internals == 0
    assert session.strip() == pid
    foreign = {name for name in os.listdir("/proc/self/fd") if inheritable(int(name))}  # of whoever started the tests
    assert set(descriptors) - foreign <= {"0", "1", "2", "3"}  # 3 is the directory that ls reads


def inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


async def test_sigpipe_ends_a_command_as_under_a_shell(host: Host) -> None:
    run = host.shell("yes | head -n 1")
    ended = await run.finish()
    assert (run.stdout, ended.exit_code) == (b"y\n", 0)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["no-such-program"], 127, b"pyro: cannot run 'no-such-program': No such file or directory\n"),
        (["/no/such/file"], 127, b"pyro: cannot run '/no/such/file': No such file or directory\n"),
        (["/etc/passwd"], 126, b"pyro: cannot run '/etc/passwd': Permission denied\n"),
        (["/usr"], 126, b"pyro: cannot run '/usr': Permission denied\n"),
    ],
)
async def test_a_program_that_cannot_run_ends_as_a_shell_would(
    host: Host, argv: list[str], code: int, message: bytes
) -> None:
    run = host.start(*argv)
    ended = await run.finish()
    assert (ended.exit_code, run.stderr) == (code, message)
    assert run.started is not None
    assert run.started.pid == 0


async def test_the_path_of_the_commands_own_environment_is_searched(host: Host, tmp_path: os.PathLike[str]) -> None:
    program = os.path.join(tmp_path, "greet")
    with open(program, "w") as file:
        file.write("#!/bin/sh\necho found\n")
    os.chmod(program, 0o755)
    run = host.start("greet", env={"PATH": f"/nowhere:{tmp_path}:/bin"})
    await run.finish()
    assert run.stdout == b"found\n"


@pytest.mark.parametrize(
    "options",
    [
        {"cwd": "/no/such/directory"},
        {"cwd": "/etc/passwd"},
        {"user": "nobody-of-this-name"},
        {"user": "0:x"},
        {"user": str(2**32)},
    ],
)
async def test_what_cannot_be_is_refused(host: Host, options: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        await host.start("true", **options).finish()  # type: ignore[arg-type]


@pytest.mark.parametrize("argv", [[], [""]])
async def test_an_empty_command_is_refused(host: Host, argv: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="empty"):
        await host.start(*argv).finish()


async def test_arguments_beyond_the_kernels_limit_are_refused(host: Host) -> None:
    with pytest.raises(InvalidArgument, match="larger than"):
        await host.start("true", "x" * (1 << 18)).finish()


async def test_bytes_that_are_not_text_pass_unchanged(host: Host) -> None:
    run = host.shell(r"printf '\000\377\n'")
    await run.finish()
    assert run.stdout == b"\x00\xff\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_user_gets_all_its_ids_and_root_comes_back(host: Host) -> None:
    script = "id -u; id -g; grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status; echo $HOME $USER"
    run = host.shell(script, user="nobody")
    await run.finish()
    assert run.stdout.decode().split() == [
        *("65534", "65534", "Uid:", *["65534"] * 4, "Gid:", *["65534"] * 4, "Groups:", "65534"),
        *("CapEff:", "0000000000000000", "/nonexistent", "nobody"),
    ]
    again = host.shell("id -u; id -G", user="1234:99")
    await again.finish()
    assert again.stdout == b"1234\n99\n"
    root = host.shell("id -u")
    await root.finish()
    assert root.stdout == b"0\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_user_may_not_run_what_only_root_may(host: Host, tmp_path: os.PathLike[str]) -> None:
    program = os.path.join("/tmp", f"pyro-secret-{os.getpid()}")
    try:
        with open(program, "w") as file:
            file.write("#!/bin/sh\n")
        os.chmod(program, 0o700)
        ended = await host.start(program, user="nobody").finish()
        assert ended.exit_code == 126
    finally:
        os.unlink(program)


async def test_a_signal_is_reported_as_such(host: Host) -> None:
    ended = await host.shell("kill -TERM $$").finish()
    assert (ended.exit_code, ended.signal) == (128 + signal.SIGTERM, signal.SIGTERM)
    assert not ended.cancelled


async def test_a_failure_on_a_full_disk_names_the_cause(configured: Bench) -> None:
    configured.system.full = True
    async with configured.connected() as host:
        assert (await host.shell("exit 1").finish()).cause == "enospc"
        assert (await host.shell("exit 0").finish()).cause is None


async def test_nothing_runs_before_the_guest_is_configured(bench: Bench) -> None:
    async with bench.connected() as host:
        with pytest.raises(WrongState, match="configured"):
            await host.start("true").finish()


async def test_a_hundred_commands_run_beside_a_long_one(host: Host) -> None:
    long = host.shell("echo begin; read line; echo $line", stdin=True)
    await long.until(b"begin\n")
    ended = []

    async def one(number: int) -> None:
        ended.append((await host.shell(f"exit {number}").finish()).exit_code)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(one, number)
    assert sorted(ended) == list(range(100))
    assert long.exit is None
    await long.stream.send(b"still here\n")
    long.stream.send_eof()
    assert (await long.finish()).exit_code == 0
    assert long.stdout == b"begin\nstill here\n"
