"""The tools image: all that the guest's agent needs, independent of what the environment's image holds.

One tree, mounted read-only at :data:`TOOLS_PATH`:

    bin/python3 bin/busybox   lib/ld-linux-x86-64.so.2 lib/*.so*   lib/python3.X/   modules/

Python is Debian's own, started through its own loader, so that no environment variable leads it to its libraries and
none leaks into what the agent starts. It runs without ``site``: the third-party packages and ours lie in the standard
library's directory, which is one directory less to search on every import.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread

from pyro_async.errors import EnvironmentBuildFailed
from pyro_async.images.ext4 import FakeRoot, make_image
from pyro_async.images.packages import Packages
from pyro_async.images.wheels import download_wheels
from pyro_async.images.workbench import Build

__all__ = ["AGENT_COMMAND", "TOOLS_PATH", "assemble_python", "assemble_tools", "find_python"]

TOOLS_PATH = "/run/pyro/tools"
_LOADER = "lib/ld-linux-x86-64.so.2"

AGENT_COMMAND = (
    *(f"{TOOLS_PATH}/{_LOADER}", "--library-path", f"{TOOLS_PATH}/lib"),
    *(f"{TOOLS_PATH}/bin/python3", "-I", "-S", "-B", "-m", "pyro_agent"),
)
"""What becomes PID 1 of every guest."""

_UNUSED = re.compile(
    r"""(__pycache__|test|tests|idlelib|tkinter|turtledemo|lib2to3|ensurepip|distutils|pydoc_data|venv|config-3\S*
    |dbm|sqlite3|curses|wsgiref|xmlrpc|turtle\.py|pydoc\.py|sitecustomize\.py|EXTERNALLY-MANAGED
    |(_tkinter|_test\w*|_curses\w*|_dbm|_gdbm|_sqlite3|_crypt|_ctypes_test|_xx\w*|xx\w*|readline|nis|audioop|ossaudiodev
      |_codecs_(cn|hk|iso2022|jp|kr|tw)|_multibytecodec)\.\S*\.so)""",
    re.VERBOSE,
)
_MTIME = 1


async def find_python(packages: Packages) -> str:
    """Returns the name of the host distribution's Python: ``python3.11``."""
    minimal = await packages.dependency("python3-minimal", r"python3\.\d+-minimal")
    return minimal.removesuffix("-minimal")


async def assemble_python(build: Build, packages: Packages, python: str, wheels: Sequence[str], target: Path) -> None:
    """Makes the directory ``target``: Python with its libraries and third-party packages, and a static busybox."""
    root = build.directory / "tools-root"
    await packages.unpack([f"{python}-minimal", f"lib{python}-stdlib"], root, closure=True)
    await packages.unpack(["busybox-static"], root)
    build.progress("tools", f"putting {python} together")
    library = target / "lib" / python
    await to_thread.run_sync(_copy_python, root, target, python)
    downloads = await download_wheels(build, wheels, python_version=python.removeprefix("python"))
    for wheel in downloads:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(library)
    for path in await _needed_libraries(build, root, target):
        shutil.copy2(path, target / "lib" / path.name)
    await _compile(build, target, library)
    await to_thread.run_sync(_settle, target)


async def assemble_tools(
    build: Build, python: Path, kernel: Path, packages: Sequence[tuple[str, Path]], image: Path
) -> None:
    """Makes the tools image from a Python tree, a kernel artifact's modules and our own Python packages.

    Args:
        packages: relative path in the image's Python library and the source file, for every file.
    """
    tree = build.directory / "tools"
    # The tree is shared with the artifact by hard links: nothing below may change a file in place.
    await to_thread.run_sync(_link_tree, python, tree)
    library = next((tree / "lib").glob("python3.*"))
    for relative, source in packages:
        destination = library / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)
    shutil.copytree(kernel / "modules", tree / "modules")
    build.progress("tools", "compiling the agent")
    for top in sorted({relative.split("/")[0] for relative, _ in packages}):
        await _compile(build, tree, library / top)
    build.progress("tools", "making the tools image")
    fake_root = FakeRoot(build.directory / "tools-owners")
    await make_image(build, tree, image, label="pyro-tools", fake_root=fake_root)


def _copy_python(root: Path, target: Path, python: str) -> None:
    def unused(directory: str, names: list[str]) -> set[str]:
        return {name for name in names if _UNUSED.fullmatch(name)}

    source = root / "usr" / "lib" / python
    if not source.is_dir():
        raise EnvironmentBuildFailed(f"the packages of {python} hold no usr/lib/{python}")
    shutil.copytree(source, target / "lib" / python, ignore=unused, symlinks=False, ignore_dangling_symlinks=True)
    (target / "bin").mkdir()
    shutil.copy2(root / "usr" / "bin" / python, target / "bin" / python)
    (target / "bin" / "python3").symlink_to(python)
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    shutil.copy2(busybox, target / "bin" / "busybox")
    loader = next(path for path in root.rglob("ld-linux-x86-64.so.2") if path.is_file() or path.is_symlink())
    shutil.copy2(_inside(root, loader), target / _LOADER)


async def _needed_libraries(build: Build, root: Path, target: Path) -> list[Path]:
    """Returns the shared libraries that the tree's Python and its extension modules are linked with."""
    directories = [root / prefix / "x86_64-linux-gnu" for prefix in ("lib", "usr/lib")]
    search = ":".join(str(directory) for directory in directories)
    loader = [str(target / _LOADER), "--inhibit-cache", "--library-path", search, "--list"]
    found: dict[str, Path] = {}
    binaries = [next((target / "bin").glob("python3.*")), *(target / "lib").rglob("*.so")]
    for binary in binaries:
        output = await build.run([*loader, str(binary)], what="looking for shared libraries")
        for name, path in re.findall(r"^\s+(\S+) => (\S+)", output, re.MULTILINE):
            if Path(path).is_relative_to(root):
                found[name] = Path(path)
        if missing := re.findall(r"^\s+(\S+) => not found", output, re.MULTILINE):
            raise EnvironmentBuildFailed(f"no package holds {missing[0]}, which {binary.name} needs")
    return [path for name, path in sorted(found.items()) if name != Path(_LOADER).name]


async def _compile(build: Build, tree: Path, directory: Path) -> None:
    # By the Python that will read it. Unchecked: the image never changes, so imports need not look at the sources.
    python = [str(tree / _LOADER), "--library-path", str(tree / "lib"), str(tree / "bin" / "python3"), "-I", "-S"]
    paths = ["-s", str(tree), "-p", TOOLS_PATH]
    argv = [*python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *paths, str(directory)]
    await build.run(argv, what="compiling Python modules")


def _settle(tree: Path) -> None:
    """Gives every file the same time, so that equal content makes equal images."""
    for path in [*tree.rglob("*"), tree]:
        os.utime(path, (_MTIME, _MTIME), follow_symlinks=False)


def _link_tree(source: Path, target: Path) -> None:
    def link(origin: str, destination: str) -> str:
        os.link(origin, destination, follow_symlinks=False)
        return destination

    shutil.copytree(source, target, symlinks=True, copy_function=link, ignore=shutil.ignore_patterns("manifest.json"))


def _inside(root: Path, path: Path) -> Path:
    """Resolves a symbolic link of an unpacked tree, whose absolute targets mean the tree's own root."""
    while path.is_symlink():
        link = path.readlink()
        path = root / link.relative_to("/") if link.is_absolute() else path.parent / link
    return path
