"""Setup's refusals and the doctor's findings, without installing or building anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyro_async import provision
from pyro_async.errors import HomeUnusable, SetupRequired
from pyro_async.images import host
from pyro_async.images.host import HostProgram, install_programs, missing_programs
from pyro_async.images.progress import silent
from pyro_async.images.workbench import Workbench

ABSENT = HostProgram("no-such-program", "no-such-package")


@pytest.fixture
def absent_program(monkeypatch: pytest.MonkeyPatch) -> HostProgram:
    monkeypatch.setattr(host, "_PROGRAMS", (HostProgram("sh", "dash"), ABSENT))
    return ABSENT


def test_only_absent_programs_are_missing(absent_program: HostProgram) -> None:
    assert missing_programs() == [absent_program]


async def test_without_rights_the_hint_is_the_line_to_run(
    tmp_path: Path, absent_program: HostProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host, "_find", lambda name: Path("/bin/apt") if name in ("apt-get", "dpkg-deb") else None)
    with pytest.raises(SetupRequired) as caught:
        await install_programs(Workbench(tmp_path), silent)
    packages = f"dash {absent_program.package}"
    assert caught.value.hint == f"run: sudo apt-get install --yes --no-install-recommends {packages}"


async def test_a_host_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_find", lambda name: None)
    with pytest.raises(SetupRequired, match="apt is missing"):
        await provision.setup(tmp_path)


async def test_nothing_is_installed_where_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_PROGRAMS", (HostProgram("sh", "dash"),))
    assert await install_programs(Workbench(tmp_path), silent) == []


async def test_the_doctor_finds_an_empty_home_wanting_and_changes_nothing(tmp_path: Path) -> None:
    diagnosis = await provision.diagnose(tmp_path / "home")
    checks = {check.name: check for check in diagnosis.checks}
    assert not diagnosis.ok
    assert checks["python"].ok
    assert checks["home"].ok
    assert not checks["guest images"].ok
    assert "pyro setup" in checks["guest images"].hint
    assert not (tmp_path / "home" / "guest").exists()


async def test_the_doctor_names_missing_programs(tmp_path: Path, absent_program: HostProgram) -> None:
    diagnosis = await provision.diagnose(tmp_path)
    check = next(check for check in diagnosis.checks if check.name == "programs")
    assert not check.ok
    assert absent_program.name in check.detail


async def test_a_home_too_deep_for_sockets_is_a_finding_and_an_error_of_setup(tmp_path: Path) -> None:
    home = tmp_path / ("deep" * 40)
    diagnosis = await provision.diagnose(home)
    assert not diagnosis.ok
    assert "too long" in diagnosis.checks[-1].detail
    with pytest.raises(HomeUnusable):
        await provision.setup(home)
