"""Real VMs: what the driver promises, shown on a guest that runs a shell on its channel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.abc import ByteStream

from pyro_async.errors import DriverUnavailable, LinkLost, WorkspaceFailed
from pyro_async.vmm.channels import Channel, HybridVsockChannel
from pyro_async.vmm.driver import Machine, MachineSpec
from pyro_async.vmm.process import ProcessIdentity
from pyro_async.vmm.qemu import QemuDriver
from tests.vmm.leftovers import processes_in

pytestmark = pytest.mark.vm


class Shell:
    """The guest's shell at the other end of a channel."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def send(self, command: str) -> None:
        await self._stream.send(command.encode() + b"\n")

    async def run(self, command: str) -> str:
        await self.send(f"{command}; echo end-of-$((6 * 7))")
        output = b""
        with anyio.fail_after(30):
            while b"end-of-42\n" not in output:
                output += await self._stream.receive()
        return output.decode().rpartition("end-of-42\n")[0]


async def eventually(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110, the machine's properties are for reading, not for waiting
            await anyio.sleep(0.05)


@asynccontextmanager
async def shell_running(driver: QemuDriver, spec: MachineSpec) -> AsyncIterator[tuple[Machine, Shell]]:
    async with driver.start(spec) as machine:
        shell = Shell(await machine.connect())
        assert await shell.run("echo hello") == "hello\n"
        yield machine, shell


async def test_guest_answers_on_either_channel_and_powers_off(
    machine_spec: MachineSpec, make_channel: Callable[[Path], Channel]
) -> None:
    async with shell_running(QemuDriver("tcg", channel=make_channel), machine_spec) as (machine, shell):
        assert await shell.run("cat /sys/block/vd*/serial") == "pyro-basepyro-toolspyro-upper"
        assert await shell.run("cat /sys/block/vd*/ro") == "1\n1\n0\n"
        assert len(await shell.run("head -c 3000000 /dev/zero | tr '\\0' x")) == 3_000_000
        assert "guest is up" in machine.console_tail()
        await shell.send("poweroff -f")
        with anyio.fail_after(10):
            ended = await machine.wait()
    assert (ended.returncode, ended.reason, ended.clean) == (0, "powered off", True)
    with pytest.raises(LinkLost):
        await machine.connect()


async def test_second_connection_supersedes_the_first(
    machine_spec: MachineSpec, make_channel: Callable[[Path], Channel]
) -> None:
    async with shell_running(QemuDriver("tcg", channel=make_channel), machine_spec) as (machine, first):
        second = Shell(await machine.connect())
        assert await second.run("echo again") == "again\n"
        with pytest.raises(anyio.ClosedResourceError):
            await first.send("echo superseded")


async def test_killed_vmm_is_reported_with_its_signal_to_every_waiter(
    machine_spec: MachineSpec, qemu: QemuDriver
) -> None:
    reasons = []

    async with qemu.start(machine_spec) as machine:

        async def wait() -> None:
            ended = await machine.wait()
            reasons.append((ended.returncode, ended.reason, ended.clean))

        async with anyio.create_task_group() as task_group:
            for _ in range(3):
                task_group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            os.kill(machine.identity.pid, signal.SIGKILL)
    assert reasons == [(-9, "killed by signal 9 (Killed)", False)] * 3


async def test_panic_and_reboot_are_told_apart(machine_spec: MachineSpec, qemu: QemuDriver) -> None:
    async with shell_running(qemu, machine_spec) as (machine, shell):
        await shell.send("echo c > /proc/sysrq-trigger")
        ended = await machine.wait()
    assert (ended.reason, ended.clean) == ("guest panicked: Kernel panic - not syncing: sysrq triggered crash", False)
    async with shell_running(qemu, machine_spec) as (machine, shell):
        await shell.send("reboot -f")
        ended = await machine.wait()
    assert (ended.reason, ended.clean) == ("guest rebooted", False)


async def test_power_off_asks_the_vmm_when_the_guest_does_not_end(machine_spec: MachineSpec, qemu: QemuDriver) -> None:
    async with qemu.start(machine_spec) as machine:
        with anyio.fail_after(5):
            ended = await machine.power_off(0.1)
    assert (ended.returncode, ended.reason) == (0, "ended by the host")


async def test_power_off_kills_a_vmm_that_does_not_answer(machine_spec: MachineSpec, qemu: QemuDriver) -> None:
    async with qemu.start(machine_spec) as machine:
        os.kill(machine.identity.pid, signal.SIGSTOP)
        with anyio.fail_after(10):
            ended = await machine.power_off(0.1)
    assert (ended.returncode, ended.reason) == (-9, "killed by the host")


async def test_power_off_works_in_a_shielded_scope_after_cancellation(
    machine_spec: MachineSpec, qemu: QemuDriver
) -> None:
    with anyio.CancelScope() as scope:
        async with qemu.start(machine_spec) as machine:
            scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), anyio.fail_after(5):
                    ended = await machine.power_off(0.1)
    assert ended.reason == "ended by the host"


async def test_leaving_kills_and_passes_the_error_on_bare(machine_spec: MachineSpec, qemu: QemuDriver) -> None:
    with pytest.raises(LookupError, match="from the body"):
        async with qemu.start(machine_spec) as machine:
            raise LookupError("from the body")
    assert not machine.identity.is_alive()


@pytest.fixture
def orphaned_vm(
    machine_spec: MachineSpec, make_channel: Callable[[Path], Channel], request: pytest.FixtureRequest
) -> Iterator[ProcessIdentity]:
    """A VM whose starter was killed with SIGKILL."""
    vsock = make_channel(machine_spec.directory)
    binary = str(request.getfixturevalue("vhost_device_vsock")) if isinstance(vsock, HybridVsockChannel) else ""
    spec = msgspec.json.encode(machine_spec, enc_hook=str).decode()
    command = [sys.executable, "-m", "tests.vmm.starter", spec, binary]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        identity = msgspec.json.decode(starter.stdout.readline(), type=ProcessIdentity)
        starter.kill()
    yield identity
    if identity.is_alive():
        os.kill(identity.pid, signal.SIGKILL)


async def test_vm_is_adopted_after_its_starter_was_killed(
    orphaned_vm: ProcessIdentity, machine_spec: MachineSpec, make_channel: Callable[[Path], Channel]
) -> None:
    driver = QemuDriver("tcg", channel=make_channel)
    async with driver.adopt(machine_spec, orphaned_vm) as machine:
        assert await Shell(await machine.connect()).run("echo still here") == "still here\n"
        machine.leave_running()
    assert orphaned_vm.is_alive()
    async with driver.adopt(machine_spec, orphaned_vm) as machine:
        await Shell(await machine.connect()).send("poweroff -f")
        with anyio.fail_after(10):
            ended = await machine.wait()
    assert (ended.returncode, ended.reason, ended.clean) == (None, "powered off", True)
    with pytest.raises(WorkspaceFailed, match="is gone"):
        async with driver.adopt(machine_spec, orphaned_vm):
            pass


async def test_adoption_that_is_cancelled_leaves_the_vm_as_it_was(
    orphaned_vm: ProcessIdentity, machine_spec: MachineSpec, make_channel: Callable[[Path], Channel]
) -> None:
    driver = QemuDriver("tcg", channel=make_channel)
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with driver.adopt(machine_spec, orphaned_vm):
            pass
    assert scope.cancelled_caught
    assert orphaned_vm.is_alive()
    async with driver.adopt(machine_spec, orphaned_vm):
        pass
    assert processes_in(machine_spec.directory) == []


async def test_cancellation_at_any_step_of_the_start_leaves_no_process(
    machine_spec: MachineSpec, make_channel: Callable[[Path], Channel]
) -> None:
    driver = QemuDriver("tcg", channel=make_channel)
    seconds = 0.0
    started = False
    while not started:
        with anyio.move_on_after(seconds):
            async with driver.start(machine_spec):
                started = True
        assert processes_in(machine_spec.directory) == []
        seconds += 0.011
    assert seconds > 0.03


async def test_channel_daemon_that_dies_ends_the_vm(machine_spec: MachineSpec, vhost_device_vsock: Path) -> None:
    driver = QemuDriver("tcg", channel=HybridVsockChannel.using(vhost_device_vsock))
    async with driver.start(machine_spec) as machine:
        daemon, *_ = [line for line in processes_in(machine_spec.directory) if "vhost" in line]
        os.kill(int(daemon.split()[0]), signal.SIGKILL)
        with anyio.fail_after(5):
            ended = await machine.wait()
    assert ended.reason == "vhost-device-vsock ended"


async def test_failures_at_start_carry_the_vmms_own_message(machine_spec: MachineSpec, qemu: QemuDriver) -> None:
    with pytest.raises(DriverUnavailable, match="no-such-qemu is not installed"):
        async with QemuDriver("tcg", binary="no-such-qemu").start(machine_spec):
            pass
    machine_spec.base.unlink()
    with pytest.raises(WorkspaceFailed, match=r"Could not open '.*/base': No such file"):
        async with qemu.start(machine_spec):
            pass


async def test_two_vms_share_images_but_not_an_upper_disk(
    machine_spec: MachineSpec, qemu: QemuDriver, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with qemu.start(machine_spec):
        with pytest.raises(WorkspaceFailed, match='Failed to get "write" lock'):
            async with qemu.start(msgspec.structs.replace(machine_spec, directory=other)):
                pass
        upper = other / "upper"
        upper.touch()
        os.truncate(upper, 1 << 20)
        async with qemu.start(msgspec.structs.replace(machine_spec, directory=other, upper=upper)) as machine:
            assert machine.paused_for is None


@pytest.fixture
def small_filesystem(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


async def test_vm_pauses_while_the_hosts_disk_is_full_and_loses_nothing(
    machine_spec: MachineSpec, qemu: QemuDriver, small_filesystem: Path
) -> None:
    upper, ballast = small_filesystem / "upper", small_filesystem / "ballast"
    upper.touch()
    os.truncate(upper, 24 << 20)
    ballast.write_bytes(bytes(24 << 20))
    async with shell_running(qemu, msgspec.structs.replace(machine_spec, upper=upper)) as (machine, shell):
        await shell.send("yes pyro | dd of=/dev/vdc bs=1M count=20 iflag=fullblock conv=fsync 2>&1; echo status=$?")
        await eventually(lambda: machine.paused_for is not None)
        assert machine.paused_for == "writing the upper disk failed: the host's disk is full"
        ballast.unlink()
        assert "status=0" in await shell.run("true")
        assert machine.paused_for is None
    assert upper.read_bytes()[: 20 << 20] == (b"pyro\n" * (5 << 20))[: 20 << 20]


async def test_console_of_a_guest_that_floods_it_stays_bounded(machine_spec: MachineSpec, qemu: QemuDriver) -> None:
    async with shell_running(qemu, machine_spec) as (machine, shell):
        await shell.run(
            r"yes 'noise \033[2J' | head -c 700000 > /dev/console; printf 'end\033]0;t\007\n' > /dev/console"
        )
        log = machine_spec.directory / "console.log"
        await eventually(lambda: machine.console_tail(100).endswith("end\n"))
        assert log.stat().st_size <= 256 * 1024
        assert len(machine.console_tail(1 << 30)) <= 64 * 1024
