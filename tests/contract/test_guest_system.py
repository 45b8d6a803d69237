"""What only a real machine shows."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import PyroError, WorkspaceFailed
from pyro_async.operations import ExecResult, ExecStarted
from pyro_async.transport import daemon_status
from tests.contract.requirements import requirement
from tests.support.eventually import eventually
from tests.support.processes import running_with
from tests.support.vm_home import VmHome

pytestmark = [pytest.mark.vm, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


@pytest.fixture
async def client(vm_home: VmHome) -> AsyncIterator[AsyncPyro]:
    async with AsyncPyro(vm_home.home) as client:
        yield client


@pytest.fixture
def ws(vm_home: VmHome) -> str:
    return vm_home.shared_workspace


@pytest.fixture
async def workspace_created(client: AsyncPyro) -> AsyncIterator[str]:
    workspace = (await client.create_workspace("debian:12", mem_mib=256)).workspace_id
    yield workspace
    await client.delete_workspace(workspace)


async def output(client: AsyncPyro, workspace: str, command: str | list[str]) -> str:
    result = await client.exec_workspace(workspace, command, cwd="/")
    assert result.exit_code == 0, result
    return result.stdout.strip()


def vmm(workspace: str) -> int:
    """The process of a workspace's VMM."""
    (pid,) = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and _works_in(path, f"/workspaces/{workspace}/vm")
    ]
    return pid


def _works_in(process: Path, directory: str) -> bool:
    try:
        return os.readlink(process / "cwd").endswith(directory)
    except OSError:
        return False


async def state_is(client: AsyncPyro, workspace: str, state: str) -> None:
    async def reached() -> bool:
        return (await client.status_workspace(workspace)).state == state

    await eventually(reached)


# --- the running guest ------------------------------------------------------------------------------------------------


@requirement("guest-identity")
async def test_a_guest_has_an_identity_and_the_usual_file_systems(client: AsyncPyro, ws: str) -> None:
    assert await output(client, ws, "hostname; cat /proc/sys/kernel/hostname; uname -n") == "shared\nshared\nshared"
    machine_id = await output(client, ws, "cat /etc/machine-id")
    assert len(machine_id) == 32
    assert int(machine_id, 16)
    before = time.time()
    clock = float(await output(client, ws, "date +%s.%N"))
    assert before - 1 < clock < time.time() + 1
    types = dict(line.split() for line in (await output(client, ws, "awk '{print $2, $3}' /proc/mounts")).splitlines())
    expected = {"/": "overlay", "/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/dev/pts": "devpts"}
    expected |= {"/tmp": "tmpfs", "/run": "tmpfs", "/dev/shm": "tmpfs", "/sys/fs/cgroup": "cgroup2"}
    assert {path: types.get(path) for path in expected} == expected


@requirement("guest-identity")
async def test_a_guest_has_randomness_and_terminals(client: AsyncPyro, ws: str) -> None:
    script = "head -c 16 /dev/urandom | wc -c; test -c /dev/ptmx && test -e /dev/fd/0 && echo ok"
    assert await output(client, ws, script) == "16\nok"
    assert int(await output(client, ws, "stat -c %a /tmp")) == 1777
    script = 'python3 -c \'import pty; pty.spawn(["echo", "on a terminal"])\''
    assert await output(client, ws, script) == "on a terminal"


@requirement("guest-init")
async def test_orphans_are_reaped(client: AsyncPyro, ws: str) -> None:
    for _ in range(5):
        await client.exec_workspace(ws, "for i in 1 2 3 4; do (setsid sh -c 'sleep 0.05 & sleep 0.05 &' &) ; done")

    async def no_zombie() -> bool:
        return await output(client, ws, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l") == "0"

    await eventually(no_zombie)
    assert int(await output(client, ws, "ls -d /proc/[0-9]* | wc -l")) < 100


@requirement("guest-identity")
async def test_a_command_cannot_reach_the_host(client: AsyncPyro, ws: str) -> None:
    assert await output(client, ws, "ls /sys/class/net") == "lo"
    result = await client.exec_workspace(ws, "timeout 5 bash -c 'echo >/dev/tcp/10.0.2.2/22'", cwd="/")
    assert result.exit_code != 0


@requirement("guest-oom")
async def test_running_out_of_memory_is_told(client: AsyncPyro, workspace_created: str) -> None:
    hog = ["python3", "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))"]
    with anyio.fail_after(60):
        result = await client.exec_workspace(workspace_created, hog)
    assert (result.cause, result.signal, result.exit_code) == ("oom", signal.SIGKILL, 137)
    assert await output(client, workspace_created, "echo alive") == "alive"


@requirement("guest-enospc")
async def test_running_out_of_disk_is_told(client: AsyncPyro, vm_home: VmHome, workspace_created: str) -> None:
    fill = "fallocate -l $(df --output=avail -B1 . | tail -1) fill || fallocate -l 14G fill"
    await client.exec_workspace(workspace_created, fill)
    write = ["dd", "if=/dev/zero", "of=more", "bs=1M", "count=2000"]
    with anyio.fail_after(60):
        result = await client.exec_workspace(workspace_created, write)
    assert (result.exit_code, result.cause) == (1, "enospc")
    assert "No space left" in result.stderr
    assert (await client.exec_workspace(workspace_created, "rm fill more; exit 3")).cause is None


# --- its disk ---------------------------------------------------------------------------------------------------------


def upper_disk(home: Path, workspace: str) -> Path:
    return home / "workspaces" / workspace / "upper.ext4"


def listing(disk: Path) -> str:
    """Every file of a disk image, as debugfs sees it."""
    return subprocess.run(
        ["debugfs", "-R", "ls -l /upper", str(disk)], capture_output=True, text=True, check=True
    ).stdout


@requirement("guest-clean-disk", "guest-fresh-disk")
async def test_a_fresh_disk_is_empty_and_a_stopped_one_clean(
    client: AsyncPyro, vm_home: VmHome, workspace_created: str
) -> None:
    disk = upper_disk(vm_home.home, workspace_created)
    await client.stop_workspace(workspace_created)
    entries = [line.split()[-1] for line in listing(disk).splitlines() if line.strip()]
    assert set(entries) <= {".", ".."}, "a workspace in which nothing was done has changed something"
    await client.start_workspace(workspace_created)
    await client.exec_workspace(workspace_created, "dd if=/dev/zero of=big bs=1M count=20; echo x >/etc/new; sync &")
    await client.stop_workspace(workspace_created)
    check = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr
    assert "was not cleanly unmounted" not in check.stdout + check.stderr
    assert " etc" in listing(disk)
    await client.start_workspace(workspace_created)
    assert await output(client, workspace_created, "cat /etc/new; stat -c %s /workspace/big") == "x\n20971520"


# --- its end ----------------------------------------------------------------------------------------------------------


@requirement("guest-panic")
async def test_a_panic_is_told_with_the_end_of_the_console(client: AsyncPyro, workspace_created: str) -> None:
    with anyio.fail_after(60), pytest.raises(WorkspaceFailed, match=r"(?s)panic.*sysrq triggered crash"):
        await client.exec_workspace(workspace_created, "echo c >/proc/sysrq-trigger; sleep 60")
    status = await client.status_workspace(workspace_created)
    assert status.state == "failed"
    assert "panic" in (status.failure or "")
    await client.start_workspace(workspace_created)
    assert await output(client, workspace_created, "echo back") == "back"


@requirement("guest-killed")
async def test_a_killed_vmm_fails_its_workspace_and_no_other(
    client: AsyncPyro, ws: str, vm_home: VmHome, workspace_created: str
) -> None:
    async def expect_failure() -> None:
        with pytest.raises(WorkspaceFailed, match="signal 9"):
            await client.exec_workspace(workspace_created, "echo part; sleep 1000")

    async def has_printed() -> bool:
        return any(entry.stdout for entry in (await client.logs_workspace(workspace_created)).entries)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_failure)
            await eventually(has_printed)
            os.kill(vmm(workspace_created), signal.SIGKILL)
        await state_is(client, workspace_created, "failed")
    assert await output(client, ws, "echo fine") == "fine"
    with pytest.raises(WorkspaceFailed):
        await client.exec_workspace(workspace_created, "true")


@requirement("daemon-killed")
async def test_after_kill_9_of_the_daemon_everything_goes_on(client: AsyncPyro, vm_home: VmHome, ws: str) -> None:
    ticker = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); [ -e fast ] || sleep 0.02; done; rm fast"
    exec_id = ""
    machine = vmm(ws)

    async def run(task_status: anyio.abc.TaskStatus[str]) -> None:
        with pytest.raises(PyroError):
            async with AsyncPyro(vm_home.home) as first, first.stream_exec(ws, ticker) as events:
                async for event in events:
                    if isinstance(event, ExecStarted):
                        task_status.started(event.exec_id)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            exec_id = await tasks.start(run)
            await anyio.sleep(0.5)
            status = await daemon_status(vm_home.home)
            assert status is not None
            os.kill(status.pid, signal.SIGKILL)
        async with AsyncPyro(vm_home.home) as second:
            assert (await second.status_workspace(ws)).state == "started"
            await second.exec_workspace(ws, "touch fast")
            entry = await _ended(second, ws, exec_id)
    assert vmm(ws) == machine
    assert (entry.exit_code, entry.stdout) == (0, "".join(f"{number}\n" for number in range(300)))


async def _ended(client: AsyncPyro, workspace: str, exec_id: str) -> ExecResult:
    while True:
        for entry in (await client.logs_workspace(workspace)).entries:
            if entry.exec_id == exec_id and entry.exit_code is not None:
                return entry
        await anyio.sleep(0.05)


@requirement("guest-busybox")
async def test_an_environment_needs_neither_python_nor_glibc(client: AsyncPyro, vm_home: VmHome) -> None:
    result = await client.run_in_vm(vm_home.busybox(), "ls /; ls /lib /usr; cat /proc/1/comm; cat", stdin=b"in")
    assert result.exit_code == 0 or "No such file" in result.stderr
    assert "lib" not in result.stdout.split()
    assert result.stdout.endswith("in")
    missing = await client.run_in_vm(vm_home.busybox(), ["python3", "--version"])
    assert missing.exit_code == 127


async def test_deleting_leaves_no_process_and_no_file(client: AsyncPyro, vm_home: VmHome) -> None:
    workspace = (await client.create_workspace("debian:12", mem_mib=256)).workspace_id
    assert running_with(workspace) or vmm(workspace)
    await client.delete_workspace(workspace)
    assert not (vm_home.home / "workspaces" / workspace).exists()
    assert running_with(workspace) == []
