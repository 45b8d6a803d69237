"""One operation under way: how events leave it, how input enters it, and what may carry it.

The runtime's handlers see a :class:`Call`, the client a :class:`Transport`; whether a socket lies between them or not
changes neither.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from pyro_async.errors import InvalidArgument
from pyro_async.operations import (
    PATTERNS,
    Event,
    ExecOutput,
    ExecStarted,
    LogEvent,
    OutputDropped,
    Params,
    Progress,
    Result,
)
from pyro_async.wire.codec import encode

__all__ = ["Call", "CallEvent", "Emit", "Transport", "checked"]

CallEvent = Progress | ExecStarted | ExecOutput | OutputDropped | LogEvent | Event
#: Delivers one event; returns when the receiver has taken it, which is how a slow receiver slows the operation down.
Emit = Callable[[CallEvent], Awaitable[None]]

P = TypeVar("P", bound=Params)

_TYPE_WORDS: Final = {"str": "text", "int": "a whole number", "float": "a number", "array": "a list", "object": "a map"}


async def _drop(event: CallEvent) -> None:
    """Where nobody wants events."""


def _never() -> bool:
    """Where a caller cannot be lost."""
    return False


class Call:
    """What a handler knows of its caller.

    Attributes:
        emit: delivers an event.
        input: the caller's input bytes, None if there is none.
        vanished: tells, once the handler is cancelled, whether the caller was lost rather than having asked for it.
    """

    __slots__ = ("emit", "input", "vanished")

    def __init__(
        self,
        emit: Emit = _drop,
        input: AsyncIterator[bytes] | None = None,  # noqa: A002
        vanished: Callable[[], bool] = _never,
    ) -> None:
        self.emit = emit
        self.input = input
        self.vanished = vanished


class Transport(Protocol):
    """Carries operations to a runtime."""

    async def call(self, name: str, params: Params, call: Call) -> Result:
        """Runs an operation to its end.

        If the caller is cancelled the operation is cancelled too, and its confirmation awaited, bounded and shielded.

        Raises:
            PyroError: whatever the operation failed with; LinkLost if the daemon went away.
        """
        ...


def checked(params: P) -> P:
    """Returns ``params`` with every constraint verified.

    Raises:
        InvalidArgument: a value has the wrong type or breaks a constraint; the message names the field.
    """
    try:
        return decode_params(encode(params), type(params))
    except TypeError as error:  # a value of a type that cannot be encoded at all
        raise InvalidArgument(_readable(error)) from error


def decode_params(data: Any, kind: type[P]) -> P:  # noqa: ANN401 - msgspec.Raw or bytes
    """Decodes and verifies an operation's parameters from MessagePack.

    Raises:
        InvalidArgument: as :func:`checked`.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidArgument(_readable(error)) from error


def _readable(error: Exception) -> str:
    """Turns msgspec's "Expected … - at `$.name`" into a sentence that starts with the field, patterns into words."""
    text, _, where = str(error).partition(" - at ")
    for pattern, words in PATTERNS.items():
        if repr(pattern) in text:
            text = f"must be {words}"
    for type_name, words in _TYPE_WORDS.items():
        text = text.replace(f"`{type_name}`", words)
    field = re.sub(r"\[\.\.\.\]$", "", where.rpartition("$.")[2].strip("`"))
    if "key" in where.partition("$.")[0]:
        field += " name"
    return f"{field}: {text}" if field else text
