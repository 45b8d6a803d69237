"""The runtime's log: one event a record, with fields; JSON lines in a file, readable lines on a terminal.

Fields name things and say why. Never what a command printed, its arguments or its environment: those may be secrets.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import msgspec

from pyro_async.errors import InvalidArgument

__all__ = ["LEVEL_VARIABLE", "configure_log", "event"]

#: Environment variable that names the lowest level logged.
LEVEL_VARIABLE: Final = "PYRO_LOG"
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
#: A file is rotated at this size; one old file is kept.
_FILE_BYTES: Final = 1024 * 1024

_log: Final = logging.getLogger("pyro")


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Logs what happened.

    Args:
        name: what, in a few words that stay the same every time.
        level: of :mod:`logging`.
        fields: to what, and why; without None.
    """
    _log.log(level, name, extra={"fields": {key: value for key, value in fields.items() if value is not None}})


def configure_log(path: Path | None, environ: Mapping[str, str] = os.environ) -> None:
    """Sends the process's log to a file that is rotated, or to stderr.

    Raises:
        InvalidArgument: ``PYRO_LOG`` names no level.
    """
    name = environ.get(LEVEL_VARIABLE) or "info"
    if name.lower() not in _LEVELS:
        raise InvalidArgument(f"{LEVEL_VARIABLE} is {name!r}", hint=f"set it to one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler() if path is None else RotatingFileHandler(path, "a", _FILE_BYTES, backupCount=1)
    handler.setFormatter(_Text() if path is None else _JsonLines())
    logging.basicConfig(level=_LEVELS[name.lower()], handlers=[handler])


class _JsonLines(logging.Formatter):
    """One object a line: time, level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class _Text(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        text = f"{_moment(record.created)} {record.levelname} {record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def _moment(seconds: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
