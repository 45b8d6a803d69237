"""The image store without downloads: environments from directory trees, names, pruning, races."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

from pyro_async.errors import EnvironmentNotFound, InvalidArgument, SetupRequired
from pyro_async.images import store as store_module
from pyro_async.images.environments import BuiltEnvironment
from pyro_async.images.recipes import RECIPES, Recipe
from pyro_async.images.sources import GuestSources
from pyro_async.images.store import ImageStore
from pyro_async.images.workbench import Build

pytestmark = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="e2fsprogs is not installed")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (directory / "bin" / "tool").chmod(0o755)
    (directory / "bin" / "same").hardlink_to(directory / "bin" / "tool")
    (directory / "link").symlink_to("bin/tool")
    return directory


def fake_environment(build: Build, digest: str) -> BuiltEnvironment:
    output = build.directory / "output"
    output.mkdir()
    (output / "base.ext4").write_bytes(digest.encode())
    return BuiltEnvironment(output, digest)


def debugfs(image: Path, command: str) -> str:
    return subprocess.run(
        ["debugfs", "-R", command, str(image)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout


async def test_a_tree_becomes_an_environment_with_all_mount_points(tmp_path: Path, tree: Path) -> None:
    store = ImageStore(tmp_path / "home")
    image = await store.register_tree("mine:1", tree)
    assert await store.ensure_environment("mine:1") == image
    subprocess.run(["e2fsck", "-fn", str(image.base)], check=True, capture_output=True)
    names = debugfs(image.base, "ls -p /")
    assert all(f"/{name}/" in names for name in ("dev", "proc", "run", "sys", "tmp", "workspace", "bin"))
    assert "Mode:  01777" in debugfs(image.base, "stat /tmp")
    assert "User:     0   Group:     0" in debugfs(image.base, "stat /bin/tool")
    assert debugfs(image.base, "cat /bin/same") == "#!/bin/sh\n"
    assert "bin/tool" in debugfs(image.base, "stat /link")
    assert not (tree / "proc").exists()
    assert list((tmp_path / "home" / "tmp").iterdir()) == []


async def test_relative_paths_are_taken_from_the_working_directory(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = await ImageStore(Path("home")).register_tree("mine", Path("tree"))
    assert image.base.is_absolute()
    assert image.base.is_relative_to(tmp_path / "home")


async def test_pruning_keeps_what_a_name_or_a_workspace_needs(tmp_path: Path, tree: Path) -> None:
    store = ImageStore(tmp_path / "home")
    first = await store.register_tree("mine", tree)
    (tree / "more").write_bytes(b"x" * 100_000)
    second = await store.register_tree("mine", tree)
    assert first.digest != second.digest
    assert (await store.prune({first.digest})).removed == []
    pruned = await store.prune(set())
    assert pruned.removed == [first.digest]
    assert pruned.bytes_freed > 0
    assert second.base.exists()
    assert (await store.prune({second.digest}, all=True)).removed == []
    assert (await store.prune(set(), all=True)).removed == [second.digest]
    with pytest.raises(EnvironmentNotFound):
        store.inspect("mine")


async def test_a_damaged_environment_is_reported_and_not_used(tmp_path: Path, tree: Path) -> None:
    store = ImageStore(tmp_path / "home")
    image = await store.register_tree("mine", tree)
    with image.base.open("r+b") as stream:
        stream.write(b"damage")
    assert any("base.ext4" in problem for problem in store.damage())
    with pytest.raises(EnvironmentNotFound):
        await store.ensure_environment("mine")


async def test_an_unknown_environment_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotFound) as caught:
        await ImageStore(tmp_path).ensure_environment("debian:99")
    assert "debian:12-base" in caught.value.hint


async def test_a_recipes_name_cannot_be_taken(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(InvalidArgument):
        await ImageStore(tmp_path / "home").register_tree("debian:12", tree)


async def test_all_recipes_are_listed_before_anything_is_built(tmp_path: Path) -> None:
    environments = ImageStore(tmp_path).list()
    assert [environment.name for environment in environments] == sorted(RECIPES)
    assert not any(environment.built for environment in environments)


async def test_the_upper_template_is_missing_before_setup(tmp_path: Path) -> None:
    with pytest.raises(SetupRequired):
        ImageStore(tmp_path).upper_template()


async def test_two_builders_at_once_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    async def build_recipe(build: Build, recipe: Recipe) -> BuiltEnvironment:
        built.append(recipe.name)
        await anyio.lowlevel.checkpoint()
        return fake_environment(build, f"digest{len(built)}")

    monkeypatch.setattr(store_module, "build_recipe", build_recipe)
    digests: list[str] = []

    async def ensure(store: ImageStore, force: bool) -> None:
        digests.append((await store.build("debian:12", force=force)).digest)

    with anyio.fail_after(10):
        for force in (False, True):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ensure, ImageStore(tmp_path), force)
    assert built == ["debian:12", "debian:12"]
    assert digests == ["digest1"] * 3 + ["digest2"] * 3


async def test_a_changed_recipe_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def build_recipe(build: Build, recipe: Recipe) -> BuiltEnvironment:
        return fake_environment(build, recipe.suite)

    monkeypatch.setattr(store_module, "build_recipe", build_recipe)
    store = ImageStore(tmp_path)
    assert (await store.ensure_environment("debian:12")).digest == "bookworm"
    changed = Recipe(name="debian:12", description="", suite="other", packages=())
    monkeypatch.setitem(RECIPES, "debian:12", changed)
    assert not store.inspect("debian:12").built
    assert (await store.ensure_environment("debian:12")).digest == "other"


def test_guest_sources_change_their_digest_with_any_file(tmp_path: Path) -> None:
    for name in ("agent/pyro_agent/__main__.py", "pyro_async/__init__.py", "pyro_async/errors.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    (tmp_path / "pyro_async/wire").mkdir()
    (tmp_path / "pyro_async/wire/frames.py").write_text("frames")
    (tmp_path / "pyro_async/client.py").write_text("not for the guest")
    directories = (tmp_path / "agent/pyro_agent", tmp_path / "pyro_async")
    before = GuestSources.collect(*directories)
    assert [name for name, _ in before.files] == [
        "pyro_agent/__main__.py",
        "pyro_async/__init__.py",
        "pyro_async/errors.py",
        "pyro_async/wire/frames.py",
    ]
    (tmp_path / "pyro_async/client.py").write_text("still not")
    assert GuestSources.collect(*directories) == before
    (tmp_path / "pyro_async/errors.py").write_text("two")
    assert GuestSources.collect(*directories).digest != before.digest
