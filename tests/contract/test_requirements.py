from __future__ import annotations

import importlib
import pkgutil

import tests.contract
from tests.contract.requirements import REQUIREMENTS


def cited() -> set[str]:
    """Every requirement that a test of this folder cites."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(tests.contract.__path__):
        if module.name.startswith("test_"):
            for value in vars(importlib.import_module(f"{tests.contract.__name__}.{module.name}")).values():
                for mark in getattr(value, "pytestmark", ()):
                    if mark.name == "requirement":
                        found.update(mark.args)
    return found


def test_every_requirement_is_shown_by_a_test() -> None:
    assert REQUIREMENTS.keys() - cited() == set()


def test_every_citation_names_a_requirement() -> None:
    assert cited() - REQUIREMENTS.keys() == set()
