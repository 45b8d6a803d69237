from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_async import AsyncPyro
from pyro_async.errors import HomeBusy, HomeUnusable
from pyro_async.home import Home, default_home
from pyro_async.runtime.runtime import Runtime


def test_a_home_is_made_with_its_parents_and_for_its_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    assert home.workspaces.is_dir()
    assert home.root.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_a_socket_is_refused_with_the_limit(tmp_path: Path) -> None:
    room = 107 - len("/daemon.sock")
    longest = tmp_path / ("x" * (room - len(str(tmp_path)) - 1))
    Home(longest)
    with pytest.raises(HomeUnusable, match="too long for a unix socket") as caught:
        Home(Path(f"{longest}x"))
    assert str(room) in caught.value.hint


def test_a_file_in_place_of_the_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    for path in (tmp_path / "home", tmp_path / "home" / "below"):
        with pytest.raises(HomeUnusable, match="cannot use the home directory"):
            Home(path)


def test_a_lock_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(HomeUnusable, match="lock"), Home(tmp_path).owned():
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_a_home_of_another_user_is_refused(tmp_path: Path) -> None:
    Home(tmp_path / "home")
    program = (
        "import os, sys; from pathlib import Path; from pyro_async.home import Home\n"
        "from pyro_async.errors import HomeUnusable\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: Home(Path(sys.argv[1]))\n"
        "except HomeUnusable as error: print(error)\n"
    )
    for directory in (tmp_path / "home", tmp_path / "home" / "below", Path("/proc/nothing")):
        output = subprocess.check_output([sys.executable, "-c", program, str(directory)], text=True)
        assert "home directory" in output, output


async def test_a_home_has_one_owner_at_a_time(tmp_path: Path) -> None:
    async with Runtime(tmp_path):
        with pytest.raises(HomeBusy, match="another process owns"):
            async with AsyncPyro(tmp_path, embedded=True):
                pass
    async with AsyncPyro(tmp_path, embedded=True) as client:
        assert (await client.list_workspaces()).workspaces == []


def test_the_default_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRO_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("PYRO_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_home() == tmp_path / "pyro"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home() == tmp_path / ".local" / "state" / "pyro"
