from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyro_async.wire.resync import EPOCH_SIZE, MARKER, Seeker
from tests.wire.test_frames import cut

EPOCH = bytes(range(EPOCH_SIZE))


@given(st.binary(max_size=100), st.binary(max_size=40), st.lists(st.integers(0, 4096)))
def test_the_seeker_finds_the_same_in_any_chunking(before: bytes, after: bytes, places: list[int]) -> None:
    data = before + MARKER + EPOCH + after
    seeker, found, rest = Seeker(MARKER, EPOCH_SIZE), None, b""
    for piece in cut(data, places):
        if found is None:
            found = seeker.feed(piece)
        else:
            rest += piece
    assert found is not None
    assert found + rest == data[data.index(MARKER) + len(MARKER) :]
