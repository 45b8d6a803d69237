"""Finding the processes that a VM's directory still has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def processes_in(directory: Path) -> list[str]:
    """The processes, alive or zombie children of ours, whose working directory is ``directory``."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and (process / "cwd").readlink() == directory.resolve():
                found.append(f"{process.name} {(process / 'comm').read_text().strip()}")
    with suppress(ChildProcessError):
        if zombie := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            found.append(f"{zombie.si_pid} zombie")
    return found
