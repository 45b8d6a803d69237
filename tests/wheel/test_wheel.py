"""The built wheel, installed alone into an empty environment, boots a workspace: no file is missing from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, home: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command far away from the checkout; fails the test with its output if it fails."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")
    }
    done = subprocess.run(
        command, env=environment | {"PYRO_HOME": str(home)}, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment that holds nothing but the wheel and its dependencies."""
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory, with_pip=True)
    pip = [str(directory / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", str(wheel)], check=True, capture_output=True)
    return directory / "bin"


def test_wheel_holds_every_module_of_every_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for folder, package in (
        (ROOT, "pyro_async"),
        (ROOT / "agent", "pyro_agent"),
        (ROOT / "cli", "pyro_cli"),
        (ROOT / "mcp_server", "pyro_mcp_server"),
    ):
        modules = {str(path.relative_to(folder)) for path in (folder / package).rglob("*.py")}
        assert modules
        assert modules <= inside


@pytest.mark.vm
def test_installed_wheel_boots_a_workspace(installed: Path, own_home: Path, tmp_path: Path) -> None:
    pyro = installed / "pyro"
    done = run(pyro, "run", "debian:12", "--", "python3", "-c", "print(6*7)", home=own_home, cwd=tmp_path)
    assert done.stdout == "42\n"
    listed = run(pyro, "workspace", "list", "--json", home=own_home, cwd=tmp_path)
    assert json.loads(listed.stdout)["workspaces"] == []
