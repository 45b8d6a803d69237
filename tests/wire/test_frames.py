from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_async.errors import ProtocolError
from pyro_async.wire.frames import HEADER, MAX_PAYLOAD, Frame, FrameDecoder

frames = st.builds(Frame, st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=64))


def encoded(frame: Frame) -> bytes:
    return HEADER.pack(len(frame.payload), frame.stream_id, frame.kind) + frame.payload


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cuts ``data`` at positions taken modulo its length."""
    cuts = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(cuts)]


@given(st.lists(frames), st.lists(st.integers(0, 4096)))
def test_any_chunking_gives_the_same_frames(sent: list[Frame], places: list[int]) -> None:
    decoder = FrameDecoder()
    received = [frame for piece in cut(b"".join(map(encoded, sent)), places) for frame in decoder.feed(piece)]
    assert received == sent
    assert decoder.unparsed() == b""


@given(st.lists(frames, max_size=3), frames, st.data())
def test_unparsed_is_what_follows_the_last_whole_frame(whole: list[Frame], last: Frame, data: st.DataObject) -> None:
    part = encoded(last)[: data.draw(st.integers(0, len(encoded(last)) - 1))]
    decoder = FrameDecoder()
    assert decoder.feed(b"".join(map(encoded, whole)) + part) == whole
    assert decoder.unparsed() == part


def test_the_largest_payload_passes_and_one_byte_more_is_refused() -> None:
    frame = Frame(16, 1, bytes(MAX_PAYLOAD))
    assert FrameDecoder().feed(encoded(frame)) == [frame]
    with pytest.raises(ProtocolError, match="above the limit"):
        FrameDecoder().feed(HEADER.pack(MAX_PAYLOAD + 1, 1, 16))


def test_after_a_refused_header_unparsed_begins_with_it() -> None:
    decoder = FrameDecoder()
    bad = HEADER.pack(MAX_PAYLOAD + 1, 7, 16) + b"rest"
    with pytest.raises(ProtocolError):
        decoder.feed(encoded(Frame(1, 0, b"fine")) + bad)
    assert decoder.unparsed() == bad


def test_a_large_frame_in_many_pieces_is_copied_only_once() -> None:
    decoder = FrameDecoder()
    data = encoded(Frame(16, 1, bytes(MAX_PAYLOAD)))
    received = [frame for start in range(0, len(data), 1024) for frame in decoder.feed(data[start : start + 1024])]
    assert len(received) == 1  # quadratic copying would take minutes here
