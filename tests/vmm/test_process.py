from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import pytest

from pyro_async.vmm.process import Process, ProcessIdentity, listens_on
from tests.vmm.leftovers import processes_in


def test_identity_tells_a_process_from_another_with_its_pid() -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity.is_alive()
    assert not msgspec.structs.replace(identity, start_ticks=identity.start_ticks + 1).is_alive()
    assert not msgspec.structs.replace(identity, boot_id="another boot").is_alive()


def test_identity_of_a_process_that_ended_is_not_alive_even_before_it_is_reaped() -> None:
    process = subprocess.Popen(["sleep", "0"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    identity = ProcessIdentity.of(process.pid)
    assert not identity.is_alive()
    process.wait()
    assert not identity.is_alive()
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(process.pid)


async def test_exit_status_reaches_every_waiter_and_nothing_is_left(tmp_path: Path) -> None:
    process = await Process.spawn(["sh", "-c", "echo last words >&2; sleep 0.2; exit 7"], cwd=tmp_path, stderr="err")
    statuses = []

    async def wait() -> None:
        statuses.append(await process.wait())

    async with anyio.create_task_group() as task_group:
        for _ in range(5):
            task_group.start_soon(wait)
        with anyio.move_on_after(0.05):  # cancelling one waiter changes nothing for the others
            await process.wait()
    assert statuses == [7] * 5
    assert process.read_stderr() == "last words\n"
    process.close()
    assert processes_in(tmp_path) == []


async def test_spawned_process_has_its_own_session_no_input_and_none_of_our_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    command = "cat; ulimit -c; ls /proc/self/fd | tr '\\n' ' '; echo; env"
    process = await Process.spawn(["sh", "-c", f"({command}) >&2; exec sleep 100"], cwd=tmp_path, stderr="err")
    try:
        assert os.getsid(process.identity.pid) == process.identity.pid
        output = ""
        with anyio.fail_after(5):
            while "LC_ALL=C" not in output:
                output += process.read_stderr()
                await anyio.sleep(0.01)
        core_limit, descriptors, *_ = output.splitlines()
        # 3 is the directory that ls reads
        assert (core_limit, descriptors) == ("0", "0 1 2 3 ")
        assert "API_KEY" not in output
    finally:
        process.kill()
        await process.wait()
        process.close()
    assert process.returncode == -signal.SIGKILL


async def test_flood_on_stderr_is_bounded_and_never_stalls_the_process(tmp_path: Path) -> None:
    flood = "import os, contextlib\nfor _ in range(64):\n with contextlib.suppress(OSError): os.write(2, b'x' * 65536)"
    process = await Process.spawn([sys.executable, "-c", flood], cwd=tmp_path, stderr="err")
    with anyio.fail_after(10):
        assert await process.wait() == 0
    assert len(process.read_stderr()) <= 65536
    process.close()


async def test_process_of_another_program_can_be_adopted(tmp_path: Path) -> None:
    starter = (
        "import anyio, sys, msgspec, pathlib\n"
        "from pyro_async.vmm.process import Process\n"
        "async def main():\n"
        "    command = ['sh', '-c', 'echo hello >&2; exec sleep 100']\n"
        "    process = await Process.spawn(command, cwd=pathlib.Path(sys.argv[1]), stderr='err')\n"
        "    print(msgspec.json.encode(process.identity).decode())\n"
        "anyio.run(main)\n"
    )
    command = [sys.executable, "-W", "error", "-c", starter, str(tmp_path)]
    identity = msgspec.json.decode(
        subprocess.run(command, check=True, capture_output=True).stdout, type=ProcessIdentity
    )
    process = Process.adopt(identity, cwd=tmp_path, stderr="err")
    assert not process.poll()
    process.kill()
    with anyio.fail_after(5):
        assert await process.wait() is None
    assert process.ended
    process.close()
    with pytest.raises(ProcessLookupError):
        Process.adopt(identity, cwd=tmp_path, stderr="err")


async def test_what_cannot_be_executed_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Process.spawn(["./missing"], cwd=tmp_path, stderr="err")


def test_listening_is_told_from_being_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("a.sock")
        assert not listens_on(os.getpid(), "a.sock")
        bound.listen()
        assert listens_on(os.getpid(), "a.sock")
        assert not listens_on(os.getpid(), "b.sock")
        assert not listens_on(os.getppid(), "a.sock")
