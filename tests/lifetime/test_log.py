"""What the runtime logs, and what it never does."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import InvalidArgument
from pyro_async.runtime.log import LEVEL_VARIABLE, configure_log, event
from tests.support.memory_guest import MemoryDriver


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """The process's log goes to this file."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    path = tmp_path / "daemon.log"
    configure_log(path, {LEVEL_VARIABLE: "debug"})
    yield path
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_workspaces_life_is_in_the_log_one_object_a_line(
    log_file: Path, client: AsyncPyro, guests: MemoryDriver
) -> None:
    made = await client.create_workspace("debian:12")
    await client.stop_workspace(made.workspace_id)
    await client.start_workspace(made.workspace_id)
    await guests.newest.die()
    await anyio.wait_all_tasks_blocked()
    await client.delete_workspace(made.workspace_id)
    found = [line for line in lines(log_file) if line.get("workspace_id") == made.workspace_id]
    assert [line["event"].removeprefix("workspace ") for line in found] == [
        *("created", "stopped", "started", "failed", "deleted")
    ]
    assert {line["level"] for line in found} == {"info", "error"}
    assert all(line["time"].endswith("Z") for line in found)
    assert found[3]["code"] == "workspace_failed"


async def test_neither_arguments_nor_environment_nor_output_are_logged(log_file: Path, client: AsyncPyro) -> None:
    made = await client.create_workspace("debian:12")
    await client.exec_workspace(made.workspace_id, "echo $TOKEN out-1f2e arg-3d4c", env={"TOKEN": "env-5b6a"})
    text = log_file.read_text()
    assert made.workspace_id in text
    assert not any(secret in text for secret in ("out-1f2e", "arg-3d4c", "env-5b6a"))


def test_text_that_breaks_lines_stays_on_one(log_file: Path) -> None:
    event("it broke", reason='first\nsecond "third"', at=Path("/tmp"), nothing=None)
    (line,) = lines(log_file)
    assert (line["reason"], line["at"]) == ('first\nsecond "third"', "/tmp")
    assert "nothing" not in line


def test_a_file_is_rotated_and_one_old_one_kept(log_file: Path) -> None:
    for number in range(40):
        event("much", number=number, filler="x" * 100_000)
    assert sorted(path.name for path in log_file.parent.glob("daemon.log*")) == ["daemon.log", "daemon.log.1"]
    assert log_file.stat().st_size <= 1024 * 1024
    assert lines(log_file)[-1]["number"] == 39


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"PYRO_LOG is 'loud'"):
        configure_log(None, {LEVEL_VARIABLE: "loud"})
