"""Artifacts and work directories: whole or absent, made once, cleaned up whatever happens."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from pyro_async.errors import EnvironmentBuildFailed, HomeUnusable, HostDiskFull, SetupRequired
from pyro_async.images import commands
from pyro_async.images.artifacts import Artifacts, digest_file
from pyro_async.images.progress import Progress, silent
from pyro_async.images.workbench import Workbench


def artifact(parent: Path, content: bytes = b"content") -> Path:
    source = parent / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(content)
    return source


def test_a_published_artifact_is_intact_and_found_by_its_reference(tmp_path: Path) -> None:
    store = Artifacts(tmp_path / "store")
    store.publish(artifact(tmp_path), "key", {"version": "1"})
    store.refer("name/with:odd letters", "key")
    assert not (tmp_path / "source").exists()
    assert store.resolve("name/with:odd letters") == "key"
    assert store.refs() == {"name/with:odd letters": "key"}
    manifest = store.intact("key")
    assert manifest is not None
    assert manifest.inputs == {"version": "1"}
    assert [file.path for file in manifest.files] == ["sub/file"]
    assert store.damage("key", deep=True) is None


def test_damage_is_found_quickly_by_size_and_thoroughly_by_checksum(tmp_path: Path) -> None:
    store = Artifacts(tmp_path / "store")
    store.publish(artifact(tmp_path), "key", {})
    file = store.path("key") / "sub" / "file"
    before = file.stat()
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.damage("key") is None
    assert "checksum" in (store.damage("key", deep=True) or "")
    file.write_bytes(b"longer content")
    assert "changed" in (store.damage("key") or "")
    file.unlink()
    assert "missing" in (store.damage("key") or "")
    assert store.intact("key") is None


def test_a_damaged_artifact_is_replaced_and_an_intact_one_is_kept(tmp_path: Path) -> None:
    store = Artifacts(tmp_path / "store")
    store.publish(artifact(tmp_path, b"one"), "key", {})
    store.publish(artifact(tmp_path, b"two"), "key", {})
    file = store.path("key") / "sub" / "file"
    assert file.read_bytes() == b"one"
    file.write_bytes(b"damage")
    store.publish(tmp_path / "source", "key", {})
    assert file.read_bytes() == b"two"


def test_a_half_removed_artifact_counts_as_none(tmp_path: Path) -> None:
    store = Artifacts(tmp_path / "store")
    store.publish(artifact(tmp_path), "key", {})
    (store.path("key") / "manifest.json").unlink()
    assert store.keys() == []
    assert store.intact("key") is None
    assert store.remove("key") > 0
    assert not store.path("key").exists()


def test_holes_do_not_change_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "dense").write_bytes(bytes(1 << 20) + b"data" + bytes(1 << 20))
    with (tmp_path / "sparse").open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"data")
        stream.truncate((2 << 20) + 4)
    assert digest_file(tmp_path / "dense") == digest_file(tmp_path / "sparse")
    os.truncate(tmp_path / "sparse", 3 << 20)
    assert digest_file(tmp_path / "dense") != digest_file(tmp_path / "sparse")


async def test_a_second_maker_waits_and_says_so(tmp_path: Path) -> None:
    first, second = Workbench(tmp_path), Workbench(tmp_path)
    told = anyio.Event()
    order: list[str] = []

    def report(progress: Progress) -> None:
        assert progress.phase == "waiting"
        told.set()

    async def wait_for_it() -> None:
        async with second.exclusive("thing", report):
            order.append("second")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks, first.exclusive("thing", silent):
            tasks.start_soon(wait_for_it)
            await told.wait()
            order.append("first")
    assert order == ["first", "second"]


async def test_a_work_directory_is_gone_after_its_build_failed(tmp_path: Path) -> None:
    async def fail() -> None:
        async with Workbench(tmp_path).build("thing", silent) as build:
            (build.directory / "file").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_what_a_killed_process_left_is_swept_and_what_a_live_one_makes_is_kept(tmp_path: Path) -> None:
    code = (
        "import anyio, os, signal, sys; from pathlib import Path\n"
        "from pyro_async.images.workbench import Workbench\n"
        "async def main():\n"
        "    async with Workbench(Path(sys.argv[1])).build('thing', lambda _: None) as build:\n"
        "        print(build.directory, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "anyio.run(main)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL
    assert left.is_dir()
    async with (
        Workbench(tmp_path).build("thing", silent) as first,
        Workbench(tmp_path).build("thing", silent) as second,
    ):
        assert not left.exists()
        assert first.directory.is_dir()
        assert second.directory.is_dir()


async def test_cancelling_kills_the_command_with_its_children_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "STOP_GRACE_SECONDS", 0.2)
    pids: list[int] = []
    started = anyio.Event()

    def on_line(line: str) -> None:
        pids.append(int(line))
        if len(pids) == 2:
            started.set()

    async def work() -> None:
        async with Workbench(tmp_path).build("thing", silent) as build:
            command = ["sh", "-c", "trap '' TERM; sleep 60 & echo $!; echo $$; exec 1>&-; wait; wait"]
            await build.run(command, what="sleeping", on_line=on_line)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await started.wait()
            tasks.cancel_scope.cancel()
        for pid in pids:
            while _is_running(pid):  # noqa: ASYNC110 - an orphan tells nobody that it ended
                await anyio.sleep(0.01)
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_failing_command_explains_itself(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildFailed, match=r"(?s)baking ended with status 3.*no yeast") as caught:
        async with Workbench(tmp_path).build("thing", silent) as build:
            await build.run(["sh", "-c", "echo no yeast >&2; exit 3"], what="baking")
    assert str(tmp_path / "logs" / "thing.log") in caught.value.hint
    assert "no yeast" in (tmp_path / "logs" / "thing.log").read_text()


async def test_a_missing_program_asks_for_setup(tmp_path: Path) -> None:
    with pytest.raises(SetupRequired, match="no-such-program"):
        async with Workbench(tmp_path).build("thing", silent) as build:
            await build.run(["no-such-program"], what="trying")


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, HostDiskFull), (errno.EDQUOT, HostDiskFull), (errno.EROFS, HomeUnusable)]
)
async def test_a_full_or_read_only_disk_is_a_typed_error(
    tmp_path: Path, number: int, expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        async with Workbench(tmp_path).build("thing", silent):
            raise OSError(number, os.strerror(number), str(tmp_path))


async def test_a_command_that_fills_the_disk_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(HostDiskFull):
        async with Workbench(tmp_path).build("thing", silent) as build:
            await build.run(["sh", "-c", "echo tar: x: No space left on device; exit 2"], what="unpacking")


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
