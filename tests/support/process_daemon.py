"""A daemon that says when it serves: ``python -m tests.support.process_daemon HOME [IMAGES]``.

Its guests are processes, or with IMAGES, a home that has some, emulated VMs.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import anyio

from pyro_async.images.store import EnvironmentImage, ImageStore
from pyro_async.runtime.daemon import Daemon
from pyro_async.runtime.runtime import Runtime
from pyro_async.vmm.qemu import QemuDriver
from tests.support.memory_guest import MemoryImages
from tests.support.process_guest import ProcessDriver


class NewImages(MemoryImages):
    """Images that hold nothing, and are always just built."""

    async def build(self, name: str, report: object, *, force: bool = False) -> EnvironmentImage:
        self._file.touch()
        return EnvironmentImage(name=name, digest="0" * 64, base=self._file, size_bytes=0, created_at=time.time())


async def main(home: Path, *images_homes: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    images = ImageStore(*images_homes) if images_homes else NewImages(home)
    driver = QemuDriver("tcg") if images_homes else ProcessDriver()
    runtime = Runtime(home, driver=driver, images=images, leave_running=True)
    async with runtime, anyio.create_task_group() as tasks:
        await tasks.start(Daemon(runtime).serve)
        print("serving", flush=True)


if __name__ == "__main__":
    home_, *images_ = map(Path, sys.argv[1:])
    anyio.run(partial(main, home_, *images_))
