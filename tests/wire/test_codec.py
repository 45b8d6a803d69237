from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_async.errors import HomeBusy, InternalError, InvalidArgument, ProtocolError, PyroError, error_from_failure
from pyro_async.wire.codec import Ending, Hello, Request, decode, encode
from pyro_async.wire.guest import Configured, ExecExit, ExecStarted, RunningExec

RECEIVED = [Hello, Request, Ending, Configured, ExecExit, ExecStarted, list[RunningExec]]


@pytest.mark.parametrize("kind", RECEIVED, ids=str)
@given(data=st.binary(max_size=64))
def test_random_bytes_decode_or_are_a_protocol_error(kind: type[object], data: bytes) -> None:
    with suppress(ProtocolError):  # anything else fails the test
        decode(data, kind)


def test_deep_nesting_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode(b"\x91" * 100_000 + b"\xc0", list[object])


def test_a_hello_of_a_later_version_with_more_fields_still_tells_its_protocol() -> None:
    later = msgspec.msgpack.encode([99, "pyro 9", b"nonce", 3, "a field of the future"])
    assert decode(later, Hello).protocol == 99


def test_text_that_is_not_unicode_is_the_callers_error() -> None:
    with pytest.raises(InvalidArgument, match="not valid UTF-8"):
        encode(["\udcff"])


@pytest.mark.parametrize(
    "result",
    [
        {"exit_code": 256},
        {"exit_code": -1},
        {"exit_code": 0, "signal": 65},
        {"exit_code": 0, "duration_seconds": -1.0},
        {"exit_code": 0, "cause": "x" * 65},
    ],
    ids=str,
)
def test_an_exit_out_of_range_is_a_protocol_error(result: dict[str, object]) -> None:
    fields = {"exit_code": 0, "signal": None, "timed_out": False, "cancelled": False, "cause": None} | result
    values = [*(fields[name] for name in ("exit_code", "signal", "timed_out", "cancelled", "cause"))]
    with pytest.raises(ProtocolError):
        decode(encode([*values, fields.get("duration_seconds", 0.0)]), ExecExit)


@pytest.mark.parametrize("kind", [*PyroError.__subclasses__()], ids=lambda kind: kind.code)
def test_every_error_survives_the_wire(kind: type[PyroError]) -> None:
    if kind.__module__ != PyroError.__module__:
        pytest.skip("private to its module, crosses no wire")
    rebuilt = error_from_failure(kind("what", hint="why").to_failure())
    assert (type(rebuilt), rebuilt.message, rebuilt.hint) == (kind, "what", "why")


def test_an_unknown_error_code_becomes_an_internal_error_that_names_it() -> None:
    failure = HomeBusy("busy").to_failure()
    rebuilt = error_from_failure(msgspec.structs.replace(failure, code="from_the_future"))
    assert isinstance(rebuilt, InternalError)
    assert rebuilt.message == "from_the_future: busy"
