"""The entry point as a process: signals, pipes, bytes and what importing costs."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.cli.conftest import Spawn

PATIENCE = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_command_and_waits_for_its_end(spawn: Spawn, number: signal.Signals) -> None:
    with spawn("workspace", "exec", "demo", "--", "forever") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (128 + number, b"the tree is gone\n", b"")


def test_the_second_interrupt_ends_the_process_at_once(spawn: Spawn) -> None:
    with spawn("workspace", "exec", "demo", "--", "stubborn") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"stopping\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


def test_an_interrupt_ends_a_command_whose_output_nobody_reads(spawn: Spawn) -> None:
    with spawn("workspace", "exec", "demo", "--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


@pytest.mark.parametrize("argv", [["workspace", "exec", "demo", "--", "yes"], ["workspace", "list"]])
def test_a_closed_pipe_ends_it_quietly(spawn: Spawn, argv: list[str]) -> None:
    with spawn(*argv) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(2)
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("through", ["pipe", "file"])
def test_binary_input_and_output_arrive_unchanged(spawn: Spawn, tmp_path: Path, through: str) -> None:
    sent = random.Random(1).randbytes(3_000_000)
    argv = ("workspace", "exec", "demo", "--stdin", "--", "cat")
    if through == "pipe":
        with spawn(*argv, stdin=subprocess.PIPE) as process:
            received, err = process.communicate(sent, timeout=PATIENCE)
    else:
        source, sink = tmp_path / "in", tmp_path / "out"
        source.write_bytes(sent)
        with source.open("rb") as stdin, sink.open("wb") as out, spawn(*argv, stdin=stdin, stdout=out) as process:
            _, err = process.communicate(timeout=PATIENCE)
        received = sink.read_bytes()
    assert (process.returncode, err) == (0, b"")
    assert received == sent


def test_input_comes_in_as_it_is_typed(spawn: Spawn) -> None:
    with spawn("run", "debian:12", "--stdin", "--", "cat", stdin=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            assert process.stdout.readline() == line
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_a_command_that_ends_does_not_wait_for_more_input(spawn: Spawn, terminal: bool) -> None:
    leader, follower = pty.openpty() if terminal else os.pipe()[::-1]
    try:
        with spawn("workspace", "exec", "demo", "--stdin", "--", "ignoring-input", stdin=follower) as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (0, b"done\n", b"")
    finally:
        os.close(leader)
        os.close(follower)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("argv", [["workspace", "list"], ["workspace", "exec", "demo", "--stdin", "--", "cat"]])
def test_closed_standard_streams_are_empty_ones(spawn: Spawn, argv: list[str], closed: tuple[int, ...]) -> None:
    with spawn(*argv, preexec_fn=partial(close, closed)) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("argv", [["workspace", "list"], ["workspace", "status", "nope"]])
def test_a_full_disk_behind_stdout_is_one_line(spawn: Spawn, argv: list[str], options: list[str]) -> None:
    with open("/dev/full", "wb") as full, spawn(*argv, *options, stdout=full) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 125
    assert err.startswith(b"error: ")
    assert err.count(b"\n") == 1


def close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_terminal_sees_a_coloured_table(spawn: Spawn) -> None:
    leader, follower = pty.openpty()
    with spawn("workspace", "list", stdout=follower, env={"TERM": "xterm-256color", "COLUMNS": "120"}):
        os.close(follower)
        seen = b""
        while b"demo-50" not in seen:
            seen += os.read(leader, 65536)
        os.close(leader)
    assert b"\x1b[32mstarted" in seen


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(spawn: Spawn, shell: str) -> None:
    with spawn("completion", shell) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")
    assert b"_PYRO_COMPLETE" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [("pyro work", "workspace"), ("pyro workspace ex", "exec"), ("pyro workspace exec demo-499", "demo-4999")],
)
def test_words_and_names_are_completed(spawn: Spawn, words: str, expected: str) -> None:
    asked = {"_PYRO_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    with spawn(env=asked) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert expected in [line.partition(",")[2] for line in out.decode().splitlines()]


def test_a_short_command_imports_nothing_heavy() -> None:
    program = (
        "import sys, pyro_cli.invocation, pyro_cli.workspace, pyro_async.client, pyro_cli.exec_io\n"
        "print(sorted({'rich', 'httpx', 'mcp', 'trio', 'sqlite3', 'pyro_async.runtime'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert finished.stdout == b"[]\n"
