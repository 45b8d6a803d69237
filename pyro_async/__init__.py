"""pyro: persistent microVM workspaces for coding agents.

Public names are imported on first use: the guest imports :mod:`pyro_async.wire` and must not pay for the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_async.blocking import Pyro as Pyro
    from pyro_async.client import AsyncPyro as AsyncPyro
    from pyro_async.errors import PyroError as PyroError

__version__ = "0.1.0"
__all__ = ["AsyncPyro", "Pyro", "PyroError", "__version__"]

_HOMES = {"AsyncPyro": "client", "Pyro": "blocking", "PyroError": "errors"}


def __getattr__(name: str) -> object:
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
