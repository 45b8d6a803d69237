"""Encoding of control messages: msgspec's MessagePack, with foreign errors turned into ours."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec

from pyro_async.errors import Failure, InvalidArgument, ProtocolError

__all__ = ["PROTOCOL_VERSION", "Ending", "Hello", "Request", "decode", "encode"]

T = TypeVar("T")

#: Version of frames, messages and their meaning; both ends must agree.
PROTOCOL_VERSION: Final = 1

_encoder: Final = msgspec.msgpack.Encoder()


class Hello(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The first frame in each direction.

    Attributes:
        protocol: PROTOCOL_VERSION of the sender. Stays the first field for ever, so that any version can read it.
        software: pyro's version, for people.
        nonce: random bytes made when the sender booted: tells a reconnect from a restart.
        generation: how many connections the sender has served before this one.
    """

    protocol: int = PROTOCOL_VERSION
    software: str = ""
    nonce: bytes = b""
    generation: int = 0


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Payload of an OPEN frame: what the new stream is for."""

    method: str
    params: msgspec.Raw = msgspec.Raw(b"\xc0")


class Ending(msgspec.Struct, frozen=True, array_like=True):
    """Payload of an END frame: either a failure or a result."""

    failure: Failure | None
    result: msgspec.Raw = msgspec.Raw(b"\xc0")


def encode(value: object) -> bytes:
    """Encodes a Struct or plain value.

    Raises:
        InvalidArgument: a string in it is not valid Unicode (a surrogate from undecodable bytes).
    """
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"text is not valid UTF-8: {error.object!r:.200}", hint="pass binary data through stdin or a file"
        ) from error


@cache
def _decoder(kind: Hashable) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(cast("Any", kind))


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decodes a value of type ``kind``.

    Raises:
        ProtocolError: the bytes are not a valid encoding of that type.
    """
    try:
        value: T = _decoder(cast("Hashable", kind)).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed {getattr(kind, '__name__', kind)}: {error}") from error
    return value
