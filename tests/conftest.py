"""Fixtures of all tests: the event loops they run on, the home of real VMs, and a guard against leaks."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from pyro_async.transport import stop_daemon
from tests.support.leaks import Footprint, mount_points, settled

_BACKENDS = ("asyncio", "trio")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requirement(*names): what the test shows; see tests/contract/requirements.py")
    config.addinivalue_line("markers", "both_loops: a test of real VMs that runs on trio too")


@pytest.fixture(params=_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop: both for everything in memory; tests of real VMs narrow it down where they are."""
    return str(request.param)


@pytest.fixture(scope="session")
def pyro_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home whose images real VMs use: ``$PYRO_HOME``, else one below pytest's own directory."""
    if home := os.environ.get("PYRO_HOME"):
        return Path(home)
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def own_home(pyro_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with workspaces and a daemon of its own, and the images of the home that tests share."""
    home = tmp_path_factory.mktemp("own-home")
    for images in ("guest", "environments"):
        (pyro_home / images).mkdir(parents=True, exist_ok=True)
        (home / images).symlink_to(pyro_home / images)
    yield home
    anyio.run(partial(stop_daemon, home, all=True))


@pytest.fixture(autouse=True)
def _nothing_left_by_the_test() -> Iterator[None]:
    before = Footprint.now()
    yield
    assert before.leaked() == []


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_by_the_session() -> Iterator[None]:
    mounts = mount_points()
    yield
    assert mount_points() - mounts == set()
    assert settled(_threads) == []


def _threads() -> list[str]:
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return [thread.name for thread in others if not thread.daemon]


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Every task that the test starts has ended with it; for modules of async tests."""
    before = _running_tasks()
    yield
    assert _running_tasks() - before == set()


def _running_tasks() -> set[tuple[int, str | None]]:
    # anyio's test runner drives each step of an asyncio test by a task of its own.
    tasks = anyio.get_running_tasks()
    return {(task.id, task.name) for task in tasks if "_call_in_runner_task" not in repr(task.coro)}
