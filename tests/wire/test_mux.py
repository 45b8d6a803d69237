"""The multiplexer, fed with bytes: no event loop anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from pyro_async.errors import ProtocolError
from pyro_async.wire.frames import CHANNELS, HEADER, MAX_DATA, FrameType
from pyro_async.wire.mux import (
    MAX_STREAMS,
    WINDOW,
    Cancel,
    Credit,
    Data,
    End,
    Eof,
    Event,
    Greeting,
    Message,
    Mux,
    Opened,
    Role,
)
from tests.wire.test_frames import cut


def pair() -> tuple[Mux, Mux]:
    """A greeted client and server."""
    client, server = Mux(Role.CLIENT, accepts=False), Mux(Role.SERVER, accepts=True)
    client.greet(b"c")
    server.greet(b"s")
    assert server.receive_data(client.bytes_to_send()) == [Greeting(b"c")]
    assert client.receive_data(server.bytes_to_send()) == [Greeting(b"s")]
    return client, server


def opened() -> tuple[Mux, Mux, int]:
    """The same with one open stream."""
    client, server = pair()
    stream = client.open(b"request")
    assert server.receive_data(client.bytes_to_send()) == [Opened(stream, b"request")]
    return client, server, stream


def frame(kind: int, stream_id: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), stream_id, kind) + payload


def test_a_stream_carries_everything_in_order_and_ends_once() -> None:
    client, server, stream = opened()
    client.send_data(stream, b"in", 3)
    client.send_message(stream, b"message")
    client.send_eof(stream)
    events = server.receive_data(client.bytes_to_send())
    assert events == [Data(stream, 3, b"in"), Message(stream, b"message"), Eof(stream)]
    server.send_data(stream, b"out")
    server.end(stream, b"result")
    assert client.receive_data(server.bytes_to_send()) == [Data(stream, 0, b"out"), End(stream, b"result")]
    assert not client.is_open(stream)
    assert not server.is_open(stream)


@given(st.lists(st.integers(0, 4096)))
def test_any_chunking_gives_the_same_events(places: list[int]) -> None:
    client, server, stream = opened()
    client.send_data(stream, bytes(300))
    client.cancel(stream)
    client.send_eof(stream)
    client.open(b"second")
    pieces = cut(client.bytes_to_send(), places)
    events = [event for piece in pieces for event in server.receive_data(piece)]
    assert events == [Data(stream, 0, bytes(300)), Cancel(stream), Eof(stream), Opened(stream + 2, b"second")]


def test_credit_runs_out_at_the_window_and_comes_back_when_granted() -> None:
    client, server, stream = opened()
    while room := client.sendable(stream):
        client.send_data(stream, bytes(min(room, MAX_DATA)))
    with pytest.raises(ValueError, match="credit"):
        client.send_data(stream, b"x")
    with pytest.raises(ValueError, match="credit"):
        client.send_message(stream, b"x")
    server.receive_data(client.bytes_to_send())
    server.grant(stream, WINDOW)
    assert client.receive_data(server.bytes_to_send()) == [Credit(stream, WINDOW)]
    assert client.sendable(stream) == WINDOW


def test_small_grants_are_gathered() -> None:
    client, server, stream = opened()
    client.send_data(stream, bytes(MAX_DATA))
    server.receive_data(client.bytes_to_send())
    for _ in range(MAX_DATA - 1):
        server.grant(stream, 1)
    assert server.pending == 0
    server.grant(stream, 1)
    assert client.receive_data(server.bytes_to_send()) == [Credit(stream, MAX_DATA)]


def test_what_the_opener_sent_before_it_saw_the_end_is_ignored() -> None:
    client, server, stream = opened()
    client.send_data(stream, b"late")
    client.send_eof(stream)
    client.cancel(stream)
    late = client.bytes_to_send()
    server.end(stream, b"")
    assert server.receive_data(late) == []
    server.grant(stream, 10**6)
    assert client.receive_data(server.bytes_to_send()) == [End(stream, b"")]
    client.cancel(stream)
    assert client.bytes_to_send() == b""


def test_a_stream_ends_once() -> None:
    client, server, stream = opened()
    server.end(stream, b"")
    with pytest.raises(KeyError):
        server.end(stream, b"")
    late = server.bytes_to_send()
    client.receive_data(late)
    with pytest.raises(ProtocolError, match="not open"):
        client.receive_data(late)


def test_only_the_responder_ends_a_stream() -> None:
    client, _, stream = opened()
    with pytest.raises(ValueError, match="responder"):
        client.end(stream, b"")


def test_nothing_follows_our_own_eof() -> None:
    client, _, stream = opened()
    client.send_eof(stream)
    with pytest.raises(ValueError, match="closed"):
        client.send_data(stream, b"x")
    with pytest.raises(ValueError, match="closed"):
        client.send_message(stream, b"x")


Violation = Callable[[Mux, Mux, int], tuple[Mux, bytes]]

VIOLATIONS: dict[str, Violation] = {
    "data beyond the credit": lambda client, server, stream: (
        server,
        b"".join(frame(FrameType.DATA, stream, bytes(MAX_DATA)) for _ in range(WINDOW // MAX_DATA))
        + frame(FrameType.DATA, stream, b"x"),
    ),
    "a message beyond the credit": lambda client, server, stream: (
        server,
        frame(FrameType.MESSAGE, stream, bytes(WINDOW + 1)),
    ),
    "credit that was never used": lambda client, server, stream: (
        server,
        frame(FrameType.CREDIT, stream, (1).to_bytes(4, "little")),
    ),
    "credit of the wrong length": lambda client, server, stream: (server, frame(FrameType.CREDIT, stream, b"")),
    "data after eof": lambda client, server, stream: (
        server,
        frame(FrameType.EOF, stream) + frame(FrameType.DATA, stream, b"x"),
    ),
    "a message after eof": lambda client, server, stream: (
        server,
        frame(FrameType.EOF, stream) + frame(FrameType.MESSAGE, stream, b"x"),
    ),
    "eof twice": lambda client, server, stream: (server, frame(FrameType.EOF, stream) * 2),
    "an unknown channel": lambda client, server, stream: (server, frame(FrameType.DATA + CHANNELS, stream, b"x")),
    "an unknown type": lambda client, server, stream: (server, frame(9, stream)),
    "a second greeting": lambda client, server, stream: (server, frame(FrameType.HELLO, 0)),
    "an end by the opener": lambda client, server, stream: (server, frame(FrameType.END, stream)),
    "a cancel by the responder": lambda client, server, stream: (client, frame(FrameType.CANCEL, stream)),
    "a stream of the wrong parity": lambda client, server, stream: (server, frame(FrameType.OPEN, stream + 1)),
    "a stream that goes back": lambda client, server, stream: (server, frame(FrameType.OPEN, stream)),
    "stream zero": lambda client, server, stream: (server, frame(FrameType.OPEN, 0)),
    "a stream where none is accepted": lambda client, server, stream: (client, frame(FrameType.OPEN, 2)),
    "data on a stream that never was": lambda client, server, stream: (
        server,
        frame(FrameType.DATA, stream + 2, b"x"),
    ),
    "a frame on our own stream that never was": lambda client, server, stream: (
        client,
        frame(FrameType.END, stream + 2),
    ),
    "empty data": lambda client, server, stream: (server, frame(FrameType.DATA, stream)),
    "an empty message": lambda client, server, stream: (server, frame(FrameType.MESSAGE, stream)),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_a_protocol_error(name: str) -> None:
    victim, data = VIOLATIONS[name](*opened())
    with pytest.raises(ProtocolError):
        victim.receive_data(data)


@pytest.mark.parametrize("kind", [*FrameType, 0, 255])
def test_a_connection_begins_with_a_greeting(kind: int) -> None:
    mux = Mux(Role.SERVER, accepts=True)
    if kind == FrameType.HELLO:
        assert mux.receive_data(frame(kind, 0, b"hi")) == [Greeting(b"hi")]
        return
    with pytest.raises(ProtocolError, match="greeting"):
        mux.receive_data(frame(kind, 1, b"x"))


def test_a_peer_cannot_open_streams_without_limit() -> None:
    _, server = pair()
    server.receive_data(b"".join(frame(FrameType.OPEN, 2 * number + 1) for number in range(MAX_STREAMS)))
    with pytest.raises(ProtocolError, match="streams open"):
        server.receive_data(frame(FrameType.OPEN, 2 * MAX_STREAMS + 1))


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_events_or_a_protocol_error(data: bytes, server_side: bool) -> None:
    client, server, _ = opened()
    try:
        (server if server_side else client).receive_data(data)
    except ProtocolError:
        pass


plausible = st.builds(
    frame,
    st.sampled_from([*FrameType, FrameType.DATA + 3, 9, 200]),
    st.integers(0, 8),
    st.binary(max_size=6) | st.just((1000).to_bytes(4, "little")),
)


@given(st.lists(plausible, max_size=40), st.booleans())
@settings(max_examples=300)
def test_frames_in_any_order_are_events_or_a_protocol_error(frames: list[bytes], server_side: bool) -> None:
    client, server, _ = opened()
    victim = server if server_side else client
    try:
        for data in frames:
            victim.receive_data(data)
    except ProtocolError:
        pass
    assert victim.pending == 0  # nothing a peer sends is echoed


class Conversation(RuleBasedStateMachine):
    """Two peers that keep the rules, with any delay between them: no error, and everything arrives in order."""

    streams: Bundle[int] = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.client, self.server = pair()
        self.sent: dict[int, bytes] = {}
        self.received: dict[int, bytes] = {}
        self.in_flight = {"client": b"", "server": b""}

    @rule(target=streams)
    def open(self) -> int:
        stream = self.client.open(b"")
        self.sent[stream] = self.received[stream] = b""
        return stream

    @rule(stream=streams, size=st.integers(1, MAX_DATA))
    def send(self, stream: int, size: int) -> None:
        if size := min(size, self.client.sendable(stream)):
            data = random.randbytes(min(size, 64)).ljust(size, b".")
            self.client.send_data(stream, data)
            self.sent[stream] += data

    @rule(share=st.floats(0, 1))
    def deliver_to_server(self, share: float) -> None:
        for event in self._deliver("client", self.client, self.server, share):
            if isinstance(event, Data):
                self.received[event.stream_id] += event.data
                self.server.grant(event.stream_id, len(event.data))

    @rule(share=st.floats(0, 1))
    def deliver_to_client(self, share: float) -> None:
        self._deliver("server", self.server, self.client, share)

    def _deliver(self, name: str, source: Mux, target: Mux, share: float) -> list[Event]:
        data = self.in_flight[name] + source.bytes_to_send()
        size = round(len(data) * share)
        self.in_flight[name] = data[size:]
        return target.receive_data(data[:size])

    @rule(stream=consumes(streams))
    def end(self, stream: int) -> None:
        if self.server.is_open(stream):
            self.server.end(stream, b"")

    @rule(target=streams, stream=consumes(streams))
    def cancel(self, stream: int) -> int | MultipleResults[int]:
        self.client.cancel(stream)
        return multiple(stream) if self.client.is_open(stream) else multiple()

    @invariant()
    def everything_arrives_in_order(self) -> None:
        assert all(self.sent[stream].startswith(data) for stream, data in self.received.items())

    @invariant()
    def no_more_than_the_window_is_unacknowledged(self) -> None:
        assert all(0 <= self.client.sendable(stream) <= WINDOW for stream in self.sent)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
