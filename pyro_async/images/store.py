"""All images of a home: what a VM boots, what a workspace starts from, and the making of whatever is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from pathlib import Path

import msgspec
from anyio import to_thread

from pyro_async.errors import EnvironmentNotFound, InvalidArgument, SetupRequired
from pyro_async.images.artifacts import Artifacts, Inputs, Manifest, digest_of
from pyro_async.images.environments import BASE_IMAGE, BuiltEnvironment, build_recipe, import_tree
from pyro_async.images.guest import GuestImages, GuestStore
from pyro_async.images.progress import Report, silent
from pyro_async.images.recipes import RECIPES, Recipe
from pyro_async.images.workbench import Workbench, host_errors
from pyro_async.operations import Environment, Pruned

__all__ = ["EnvironmentImage", "GuestImages", "ImageStore"]

_PUBLISHING = "publishing"


class EnvironmentImage(msgspec.Struct, frozen=True, kw_only=True):
    """A built environment.

    Attributes:
        digest: names the image for good; a name may come to mean another one.
        base: its read-only ext4 image.
        size_bytes: what the image takes on the host's disk.
        created_at: seconds since the epoch.
    """

    name: str
    digest: str
    base: Path
    size_bytes: int
    created_at: float


class ImageStore:
    """The images below a home directory; as many processes as like may use one at once.

    Everything is made at most once: a second maker waits for the first. Cancelling or killing a maker leaves nothing
    half-made behind. Awaited methods raise :class:`~pyro_async.errors.HostDiskFull`,
    :class:`~pyro_async.errors.HomeUnusable`, :class:`~pyro_async.errors.SetupRequired` (the host lacks a program) and
    :class:`~pyro_async.errors.EnvironmentBuildFailed`.
    """

    def __init__(self, home: Path) -> None:
        # Commands run in directories of their own, where a relative path would mean something else.
        self.home = home.absolute()
        self._workbench = Workbench(self.home)
        self._environments = Artifacts(self.home / "environments")
        self._guest = GuestStore(self.home, self._workbench)

    async def ensure_guest(self, report: Report = silent, *, refresh: bool = False) -> GuestImages:
        """Returns kernel, initramfs and tools image, making them if they are missing or our own sources have changed.

        With ``refresh`` newer packages are used where there are any. Takes milliseconds if all is there, else up to a
        minute.
        """
        return await self._guest.ensure(report, refresh=refresh)

    def upper_template(self) -> Path:
        """Returns the pristine image that every workspace's upper disk is a clone of.

        Raises :class:`~pyro_async.errors.SetupRequired` before :meth:`ensure_guest` has made it.
        """
        path = self._guest.upper_template()
        if path is None:
            raise SetupRequired("the image for new workspaces' disks is missing", hint="run: pyro setup")
        return path

    async def ensure_environment(self, name: str, report: Report = silent) -> EnvironmentImage:
        """Returns the environment ``name``, building it if it is missing or its recipe has changed.

        Raises :class:`~pyro_async.errors.EnvironmentNotFound` if it is neither there nor has a recipe.
        """
        return await self.build(name, report, force=False)

    async def build(self, name: str, report: Report = silent, *, force: bool = True) -> EnvironmentImage:
        """Builds an environment from its recipe; without ``force`` only if there is need."""
        current = self._current(name)
        if current and not force:
            return current
        recipe = RECIPES.get(name)
        if recipe is None:
            raise EnvironmentNotFound(f"there is no environment {name!r}", hint=f"known are {', '.join(self._names())}")
        before = self._environments.resolve(name)
        async with self._workbench.exclusive(_lock_name(name), report):
            # Whoever held the lock has built it, unless it is still the one we were asked to replace.
            current = self._current(name)
            if current and not (force and current.digest == before):
                return current
            async with self._workbench.build(_lock_name(name), report) as build:
                return await self._publish(name, await build_recipe(build, recipe), _recipe_inputs(recipe))

    async def register_tree(self, name: str, directory: Path, report: Report = silent) -> EnvironmentImage:
        """Publishes a copy of a directory tree under a name that no recipe has; an earlier one of the name goes."""
        if name in RECIPES:
            raise InvalidArgument(f"the name {name} belongs to an environment that pyro builds")
        async with (
            self._workbench.exclusive(_lock_name(name), report),
            self._workbench.build(_lock_name(name), report) as build,
        ):
            # Absolute, as the home is.
            source = await to_thread.run_sync(directory.absolute)
            environment = await import_tree(build, source, f"importing {name}")
            return await self._publish(name, environment, {"tree": str(source)})

    def list(self) -> list[Environment]:
        """Returns the environments that are built or can be built. Blocks for some milliseconds."""
        return [self.inspect(name) for name in self._names()]

    def inspect(self, name: str) -> Environment:
        """Describes one environment; raises :class:`~pyro_async.errors.EnvironmentNotFound` for an unknown name."""
        recipe = RECIPES.get(name)
        image = self._current(name)
        if recipe is None and image is None:
            raise EnvironmentNotFound(f"there is no environment {name!r}", hint=f"known are {', '.join(self._names())}")
        return Environment(
            name=name,
            description=recipe.description if recipe else "imported from a directory",
            built=image is not None,
            digest=image.digest if image else None,
            size_bytes=image.size_bytes if image else 0,
            created_at=image.created_at if image else None,
            packages=list(recipe.packages) if recipe else [],
        )

    async def prune(self, in_use: Set[str], *, all: bool = False) -> Pruned:  # noqa: A002 - the operation's own name
        """Removes images that nothing refers to.

        Args:
            in_use: environment digests and guest keys that workspaces need; these stay.
            all: also removes environments that only a name refers to.
        """
        async with self._guest.exclusive(silent), self._workbench.exclusive(_PUBLISHING, silent):
            return await to_thread.run_sync(self._prune, frozenset(in_use), all)

    def damage(self, *, deep: bool = False) -> Sequence[str]:
        """Returns what is wrong with the images that are there; ``deep`` compares checksums, about 1 s a GB. Blocks."""
        environments = [self._environments.damage(key, deep=deep) for key in self._environments.keys()]  # noqa: SIM118
        return [problem for problem in (*self._guest.damage(deep=deep), *environments) if problem]

    def current_guest(self) -> GuestImages | None:
        """Returns what :meth:`ensure_guest` would return without making anything, or None."""
        return self._guest.current()

    async def _publish(self, name: str, environment: BuiltEnvironment, inputs: Inputs) -> EnvironmentImage:
        # Between the image and its name somebody who prunes would find it unused.
        async with self._workbench.exclusive(_PUBLISHING, silent):
            await to_thread.run_sync(self._environments.publish, environment.directory, environment.digest, inputs)
            self._environments.refer(name, environment.digest)
            return self._image(name, environment.digest)

    def _prune(self, in_use: frozenset[str], everything: bool) -> Pruned:
        environments = self._environments
        with host_errors(self.home):
            if everything:
                for name, digest in environments.refs().items():
                    if digest not in in_use:
                        environments.forget(name)
            keep = in_use | set(environments.refs().values())
            removed = {key: environments.remove(key) for key in environments.keys() if key not in keep}  # noqa: SIM118
            removed |= self._guest.prune(in_use)
        return Pruned(removed=sorted(removed), bytes_freed=sum(removed.values()))

    def _names(self) -> Sequence[str]:
        return sorted({*RECIPES, *self._environments.refs()})

    def _current(self, name: str) -> EnvironmentImage | None:
        key = self._environments.resolve(name)
        manifest = self._environments.intact(key)
        if key is None or manifest is None or _outdated(name, manifest):
            return None
        return self._image(name, key)

    def _image(self, name: str, key: str) -> EnvironmentImage:
        manifest = self._environments.manifest(key)
        assert manifest is not None
        base = self._environments.path(key) / BASE_IMAGE
        size = os.stat(base).st_blocks * 512
        return EnvironmentImage(name=name, digest=key, base=base, size_bytes=size, created_at=manifest.created_at)


def _recipe_inputs(recipe: Recipe) -> Inputs:
    return {"recipe": digest_of(recipe), "packages": list(recipe.packages)}


def _outdated(name: str, manifest: Manifest) -> bool:
    recipe = RECIPES.get(name)
    return recipe is not None and manifest.inputs.get("recipe") != digest_of(recipe)


def _lock_name(environment: str) -> str:
    """Returns a file name for the lock and log of an environment: its own, as far as that is one."""
    plain = "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in environment)
    return f"environment-{plain[:64]}-{digest_of(environment)[:8]}"
