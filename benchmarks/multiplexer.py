"""The multiplexer alone: encode, decode and credit of both ends, without any I/O."""

from __future__ import annotations

import struct
import time

from benchmarks.measure import Settings, alternate
from benchmarks.results import Row, at_least
from pyro_async.wire.mux import Data, Mux, Role

__all__ = ["run"]

_SMALL, _LARGE = 64, 64 * 1024
#: Frames handed over at a time: as many as a connection reads at once, but never fewer than four.
_BATCH_BYTES = 256 * 1024
_HEADER = struct.Struct("<IIB")


async def run(settings: Settings) -> list[Row]:
    """Frames of 64 bytes a second, and bytes a second in frames of 64 KiB."""
    small = await _rates(settings, _SMALL, settings.count(200_000, 50_000))
    large = await _rates(settings, _LARGE, settings.count(16_384, 4_096))
    gigabytes = {name: [rate * _LARGE / 1e9 for rate in rates] for name, rates in large.items()}
    loop = "struct pack and unpack"
    return [
        Row.of("mux, 64 B frames", "frames/s", small["mux"], loop, small["loop"], at_least(500_000, "figure")),
        Row.of("mux, 64 KiB frames", "GB/s", gigabytes["mux"], loop, gigabytes["loop"], at_least(1.0, "figure")),
    ]


async def _rates(settings: Settings, size: int, frames: int) -> dict[str, list[float]]:
    payload = bytes(size)
    batch = max(4, _BATCH_BYTES // (size + _HEADER.size))
    batches = frames // batch

    async def mux() -> float:
        return batches * batch / _through_mux(payload, batch, batches)

    async def loop() -> float:
        return batches * batch / _through_struct(payload, batch, batches)

    return await alternate(settings.count(9, 5), mux=mux, loop=loop)


def _through_mux(payload: bytes, batch: int, batches: int) -> float:
    """Seconds for sending and receiving all frames on one stream, with the receiver granting every byte."""
    client, server = Mux(Role.CLIENT, accepts=False), Mux(Role.SERVER, accepts=True)
    client.greet(b"")
    server.greet(b"")
    stream = client.open(b"")
    server.receive_data(client.bytes_to_send())
    client.receive_data(server.bytes_to_send())
    began = time.perf_counter()
    for _ in range(batches):
        for _ in range(batch):
            client.send_data(stream, payload)
        for event in server.receive_data(client.bytes_to_send()):
            assert isinstance(event, Data)
            server.grant(event.stream_id, len(event.data))
        if server.pending:
            client.receive_data(server.bytes_to_send())
    return time.perf_counter() - began


def _through_struct(payload: bytes, batch: int, batches: int) -> float:
    """Seconds for the same frames with nothing but their headers packed and unpacked."""
    pack, unpack, size = _HEADER.pack, _HEADER.unpack_from, _HEADER.size
    began = time.perf_counter()
    for _ in range(batches):
        out: list[bytes] = []
        for _ in range(batch):
            out.append(pack(len(payload), 1, 16))
            out.append(payload)
        data = b"".join(out)
        position, end = 0, len(data)
        received: list[tuple[int, int, bytes]] = []
        while position < end:
            length, stream, kind = unpack(data, position)
            position += size + length
            received.append((kind, stream, data[position - length : position]))
    return time.perf_counter() - began
