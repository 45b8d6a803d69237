"""Starts a VM, says who it is, and waits to be killed: run by the tests of adoption as a program of its own."""

from __future__ import annotations

import sys

import anyio
import msgspec

from pyro_async.vmm.channels import HybridVsockChannel, VirtioSerialChannel
from pyro_async.vmm.driver import MachineSpec
from pyro_async.vmm.qemu import QemuDriver


async def main() -> None:
    spec = msgspec.json.decode(sys.argv[1], type=MachineSpec, dec_hook=lambda kind, value: kind(value))
    vhost_device_vsock = sys.argv[2]
    channel = (
        HybridVsockChannel.using(spec.directory / vhost_device_vsock) if vhost_device_vsock else VirtioSerialChannel
    )
    async with QemuDriver("tcg", channel=channel).start(spec) as machine:
        stream = await machine.connect()
        await stream.send(b"echo $((6 * 7))\n")
        assert await stream.receive() == b"42\n"
        print(msgspec.json.encode(machine.identity).decode(), flush=True)
        await anyio.sleep_forever()


anyio.run(main)
