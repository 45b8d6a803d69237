"""The docs' examples run, their code is the code that is shown, and links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import asyncclick as click
import pytest

from pyro_cli.app import pyro

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "docs" / "examples"

#: What each example must print, as patterns of whole lines that appear in this order.
OUTPUT = {
    "agent.py": [
        r"\[(first|second)\] checking on (first|second)",
        r"\[(first|second)\] gave up: True, processes left: none",
    ],
    "blocking.py": ["42", "streamed"],
    "events.py": [
        "workspace.created True",
        "workspace.started True",
        r"exec.started\s*",
        "exec.ended 3",
        r"workspace.deleted\s*",
    ],
    "durable.py": [
        "first client: step 1",
        "second client: step 3",
        "same command: True exit code 3",
        "a page: step 2 next 13 of 21",
        r"log: \$ for step i",
        "log: exit code 3",
    ],
    "lifecycle.py": ["stopped", "started", "kept", "set -o vi", ".*No such file.*", "{'purpose': 'example'}"],
    "seeing.py": [
        "lives for 3600 s",
        "1 command runs",
        r"the guest has \d+ MiB of memory left",
        r"its VM takes \d+ MiB of the host's",
    ],
    "streaming.py": [r"stdout line 1.*", "exit code 0", "sum 10", "timed out True 124 started"],
}


def run_program(program: str | Path, *arguments: str, home: Path) -> str:
    """Runs a Python program as a user would, against the home's daemon; returns what it printed."""
    command = [sys.executable, "-W", "error", str(program), *arguments]
    environment = os.environ | {"PYRO_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def appear_in_order(patterns: list[str], output: str) -> bool:
    lines = iter(output.splitlines())
    return all(any(re.fullmatch(pattern, line) for line in lines) for pattern in patterns)


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(OUTPUT)


@pytest.mark.vm
@pytest.mark.parametrize(
    ("example", "backend"),
    [
        ("agent.py", "asyncio"),
        ("agent.py", "trio"),
        ("streaming.py", "trio"),
        ("durable.py", "asyncio"),
        ("lifecycle.py", "asyncio"),
        ("events.py", "trio"),
        ("blocking.py", ""),
        ("seeing.py", "trio"),
    ],
)
def test_example_prints_what_it_promises(example: str, backend: str, own_home: Path) -> None:
    output = run_program(EXAMPLES / example, *filter(None, [backend]), home=own_home)
    assert appear_in_order(OUTPUT[example], output), output


@pytest.mark.vm
def test_readme_program_runs(own_home: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "readme.py").write_text(program)
    assert run_program(tmp_path / "readme.py", home=own_home) == "1\n2\n3\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_shown_in_pages_exist(page: Path) -> None:
    shown = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL))
    for line in re.findall(r"^(?:\$ |.*\| )?pyro (?!-)(.*)$", shown, re.MULTILINE):
        words = line.split()
        command: click.Command = pyro
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, f"{page.name}: pyro {line}"
            command = found
