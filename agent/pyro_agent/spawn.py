"""Starting a command's process.

``posix_spawn`` shares the agent's memory with the child until it has exec'd, so nothing is copied: under emulation a
fork of the agent costs more than most commands. It can set neither working directory nor user, but the child inherits
both, and the agent has one thread and does not await in between: so it takes them on for the moment of the call.
"""

from __future__ import annotations

import errno
import os
import signal
from stat import S_ISREG
from typing import NamedTuple

from pyro_agent.accounts import Account
from pyro_async.errors import InvalidArgument

__all__ = ["Command", "default_environment", "spawn"]

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Python ignores these; the rest is at its default or caught, and exec resets what is caught.
_RESET_SIGNALS = [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if number in signal.valid_signals()]


class Command(NamedTuple):
    """What to start. The three descriptors become the child's 0, 1 and 2; all others must be close-on-exec."""

    argv: list[str]
    environment: dict[str, str]
    cwd: str
    account: Account
    stdin: int
    stdout: int
    stderr: int


def default_environment(account: Account, cwd: str) -> dict[str, str]:
    """The environment of a command before the caller's own variables."""
    return {
        "PATH": _DEFAULT_PATH,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
        "LANG": "C.UTF-8",
        "PWD": cwd,
    }


def spawn(command: Command) -> int:
    """Starts the command in a session of its own and returns its pid. Blocks until it has exec'd.

    Raises:
        InvalidArgument: the working directory cannot be entered, or arguments and environment are too large.
        OSError: the program cannot be run.
    """
    account = command.account
    switch = (account.uid, account.gid) != (os.geteuid(), os.getegid())
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if switch:
            # Zero stays as saved id, so that the agent comes back; exec overwrites the child's saved ids.
            os.setgroups(account.groups)
            os.setresgid(account.gid, account.gid, 0)
            os.setresuid(account.uid, account.uid, 0)
        _enter(command.cwd)
        return os.posix_spawn(
            _find_program(command.argv[0], command.environment.get("PATH", _DEFAULT_PATH)),
            command.argv,
            command.environment,
            file_actions=(
                (os.POSIX_SPAWN_DUP2, command.stdin, 0),
                (os.POSIX_SPAWN_DUP2, command.stdout, 1),
                (os.POSIX_SPAWN_DUP2, command.stderr, 2),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_RESET_SIGNALS,
        )
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise InvalidArgument(
                "arguments and environment are larger than the guest's kernel allows (2 MiB, 128 KiB each)",
                hint="pass large input through stdin or a file",
            ) from error
        raise
    except ValueError as error:  # NUL bytes, or "=" in a variable's name
        raise InvalidArgument(f"the command cannot be run: {error}") from error
    finally:
        if switch:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups(())
        os.fchdir(here)
        os.close(here)


def _enter(cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise InvalidArgument(
            f"cannot use {cwd!r} as working directory: {error.strerror}", hint="create it first or pass another cwd"
        ) from error


def _find_program(name: str, path: str) -> str:
    """Searches ``path`` as a shell does: a file that may not be executed is remembered, in case no other is found."""
    if "/" in name:
        return name
    failure = errno.ENOENT
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
        failure = errno.EACCES
    raise OSError(failure, os.strerror(failure), name)
