"""Checks and chores. Sessions run in the environment nox itself runs in: `./dev` made it with everything they need."""

from __future__ import annotations

import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "generate", "tests"]
nox.options.stop_on_first_error = True

SOURCES = ["pyro_async", "agent", "cli", "mcp_server", "tests", "benchmarks", "docs", "noxfile.py"]
PYTHON = sys.executable


@nox.session
def lint(session: nox.Session) -> None:
    """Style, import rules, shell."""
    session.run(PYTHON, "-m", "ruff", "check", *SOURCES)
    session.run(PYTHON, "-m", "ruff", "format", "--check", *SOURCES)
    session.run(PYTHON, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.run(PYTHON, "-m", "mypy", *(session.posargs or SOURCES))


@nox.session
def generate(session: nox.Session) -> None:
    """Writes the derived files; in the default run only checks that they are fresh."""
    session.run(PYTHON, "docs/generate.py", *(session.posargs or ["--check"]))


@nox.session
def tests(session: nox.Session) -> None:
    """All tests: in memory, on real VMs, and the docs' examples."""
    session.run(PYTHON, "-m", "pytest", *session.posargs)


@nox.session
def vm(session: nox.Session) -> None:
    """Only what boots real VMs."""
    session.run(PYTHON, "-m", "pytest", "-m", "vm", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """The built wheel, installed alone into an empty environment, boots a workspace."""
    session.run(PYTHON, "-m", "pytest", "tests/wheel", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks against their baselines; writes JSON and a picture below bench-results."""
    session.run(PYTHON, "-m", "benchmarks", "--output", "bench-results", *session.posargs)
