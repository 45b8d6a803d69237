"""The environments that pyro builds by name."""

from __future__ import annotations

import msgspec

__all__ = ["RECIPES", "Recipe"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How to make an environment from Debian packages.

    Attributes:
        suite: the release, as its archive names it.
        packages: installed beyond the essential ones and apt.
        revision: raised when the way of building changes, so that what was built before is built anew.
    """

    name: str
    description: str
    suite: str
    packages: tuple[str, ...]
    revision: int = 1


_TOOLS = ("ca-certificates", "curl", "git", "procps", "python3")
_COMPILERS = ("build-essential", "cmake", "pkg-config", "python3-dev", "python3-pip", "python3-venv")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="debian:12",
            description="Debian 12 with git, Python 3, curl and the usual process tools",
            suite="bookworm",
            packages=_TOOLS,
        ),
        Recipe(
            name="debian:12-base",
            description="Debian 12 with nothing but its base system and apt",
            suite="bookworm",
            packages=(),
        ),
        Recipe(
            name="debian:12-build",
            description="debian:12 with compilers, make, cmake and what Python packages need to build",
            suite="bookworm",
            packages=(*_TOOLS, *_COMPILERS),
        ),
    )
}
