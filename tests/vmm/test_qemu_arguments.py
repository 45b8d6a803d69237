from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pyro_async.errors import DriverUnavailable, HostDiskFull, WorkspaceFailed
from pyro_async.vmm.channels import HybridVsockChannel, VirtioSerialChannel
from pyro_async.vmm.driver import MachineSpec
from pyro_async.vmm.qemu_arguments import qemu_arguments
from pyro_async.vmm.qemu_exit import error_line, explain_exit, start_failure

SPEC = MachineSpec(
    directory=Path("/vms/a"),
    kernel=Path("/images/vmlinux"),
    initramfs=Path("/images/initramfs"),
    tools=Path("/images/tools, with a comma.ext4"),
    base=Path("/images/base.ext4"),
    upper=Path("/vms/a/upper.ext4"),
    vcpu_count=3,
    mem_mib=300,
    kernel_arguments=("extra=1",),
)


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == option]


def serial_arguments(**changes: object) -> list[str]:
    parameters: dict[str, object] = {
        "channel_arguments": VirtioSerialChannel.qemu_arguments,
        "channel_kernel_arguments": (),
        "shared_memory": False,
        "tsc_khz": None,
    }
    return qemu_arguments(SPEC, "tcg", **(parameters | changes))  # type: ignore[arg-type]


def test_disks_come_in_order_raw_locked_and_only_the_upper_is_writable() -> None:
    arguments = serial_arguments()
    disks = [json.loads(value) for value in values(arguments, "-blockdev")]
    assert [disk["file"]["filename"] for disk in disks] == [str(SPEC.base), str(SPEC.tools), str(SPEC.upper)]
    assert [disk["read-only"] for disk in disks] == [True, True, False]
    assert all(disk["driver"] == "raw" and disk["file"]["locking"] == "on" for disk in disks)
    devices = [json.loads(value) for value in values(arguments, "-device") if value.startswith("{")]
    assert [device["serial"] for device in devices] == ["pyro-base", "pyro-tools", "pyro-upper"]
    assert [device["werror"] for device in devices] == ["report", "report", "stop"]


def test_guest_is_confined_to_the_devices_it_needs() -> None:
    arguments = serial_arguments()
    for option in ("-no-user-config", "-nodefaults", "-no-reboot"):
        assert option in arguments
    assert values(arguments, "-sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]
    assert not {"-net", "-netdev", "-nic", "-usb", "-vnc"} & set(arguments)


def test_size_and_kernel_arguments_reach_the_machine() -> None:
    arguments = serial_arguments(tsc_khz=2_600_000)
    assert values(arguments, "-smp") == ["3"]
    assert json.loads(values(arguments, "-object")[0]) == {
        "id": "memory",
        "size": 300 << 20,
        "qom-type": "memory-backend-ram",
    }
    append = values(arguments, "-append")[0].split()
    assert append[-2:] == ["tsc_early_khz=2600000", "extra=1"]
    assert {"panic=-1", "reboot=t"} <= set(append)


def test_accelerators_differ_in_cpu_and_translation_cache() -> None:
    assert values(serial_arguments(), "-accel") == ["tcg,tb-size=128"]
    kvm = qemu_arguments(
        SPEC, "kvm", channel_arguments=(), channel_kernel_arguments=(), shared_memory=False, tsc_khz=None
    )
    assert (values(kvm, "-accel"), values(kvm, "-cpu")) == (["kvm"], ["host"])


def test_vsock_shares_the_guests_memory_and_tells_the_agent() -> None:
    channel = HybridVsockChannel
    arguments = serial_arguments(
        channel_arguments=channel.qemu_arguments,
        channel_kernel_arguments=channel.kernel_arguments,
        shared_memory=channel.shared_memory,
    )
    memory = json.loads(values(arguments, "-object")[0])
    assert (memory["qom-type"], memory["share"]) == ("memory-backend-memfd", True)
    assert "pyro.channel=vsock" in values(arguments, "-append")[0]


def test_no_socket_depends_on_the_directorys_length() -> None:
    sockets = [value for value in serial_arguments() if value.startswith("socket,")]
    assert len(sockets) == 3
    assert not any("/" in value for value in sockets)


@pytest.mark.parametrize(
    ("left_behind", "reason", "clean"),
    [
        ({"shutdown_reason": "guest-shutdown"}, "powered off", True),
        ({"shutdown_reason": "guest-reset"}, "guest rebooted", False),
        (
            {"shutdown_reason": "guest-reset", "console": "x\n[ 1.0] Kernel panic - not syncing: oops\nrest"},
            "guest panicked: Kernel panic - not syncing: oops",
            False,
        ),
        ({"shutdown_reason": "host-qmp-quit"}, "ended by the host", False),
        ({"shutdown_reason": "host-signal"}, "terminated by a signal", False),
        ({"shutdown_reason": "snapshot-load"}, "QEMU shut down: snapshot-load", False),
        ({"returncode": -11}, "killed by signal 11 (Segmentation fault)", False),
        ({"returncode": None}, "QEMU ended without a word: killed or crashed", False),
        ({"returncode": 1, "stderr": "qemu-system-x86_64: oh no\n"}, "QEMU failed with status 1: oh no", False),
        ({"returncode": -9, "verdict": "killed by the host"}, "killed by the host", False),
    ],
)
def test_exit_is_explained(left_behind: dict[str, object], reason: str, clean: bool) -> None:
    nothing: dict[str, object] = {
        "returncode": 0,
        "verdict": None,
        "shutdown_reason": None,
        "console": "",
        "stderr": "",
    }
    ended = explain_exit(**(nothing | left_behind))  # type: ignore[arg-type]
    assert (ended.reason, ended.clean) == (reason, clean)


def test_reason_has_a_bound_whatever_the_guest_printed() -> None:
    ended = explain_exit(
        returncode=0,
        verdict=None,
        shutdown_reason="guest-reset",
        console="Kernel panic - " + "x" * 100_000,
        stderr="",
    )
    assert len(ended.reason) <= 300


@pytest.mark.parametrize(
    ("stderr", "error"),
    [
        ("qemu-system-x86_64: Could not open 'x'\nqemu-system-x86_64: -cpu: warning: no y\n", "Could not open 'x'"),
        (
            'qemu-system-x86_64: -blockdev {"a": {"b": 1}}: Failed to get "write" lock\nIs another process using it?\n',
            'Failed to get "write" lock Is another process using it?',
        ),
        ("/opt/bin/qemu-system-x86_64: -accel: warning: only this", "-accel: warning: only this"),
        ("no name\n", "no name"),
        (" \n", ""),
    ],
)
def test_error_line_is_the_last_error_without_program_and_json(stderr: str, error: str) -> None:
    assert error_line(stderr) == error


def test_failure_to_start_has_the_type_of_its_cause() -> None:
    assert isinstance(start_failure("tcg", 1, "qemu: No space left on device"), HostDiskFull)
    assert isinstance(start_failure("kvm", 1, "qemu: failed to initialize kvm: No such device"), DriverUnavailable)
    assert isinstance(start_failure("tcg", 1, "qemu: something else"), WorkspaceFailed)
    assert "killed by signal 9" in str(start_failure("tcg", -9, ""))
