"""What a user sees when something goes wrong."""

from __future__ import annotations

import pytest

from pyro_async.errors import PyroError, WorkspaceFailed, WorkspaceNotFound
from tests.cli.conftest import Cli
from tests.cli.fake_pyro import FakeTransport


async def test_json_errors_are_an_object_on_stdout(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["status_workspace"] = WorkspaceNotFound("there is no workspace 'x'", hint="look at the list")
    outcome = await cli("workspace", "status", "x", "--json")
    assert (outcome.status, outcome.stderr) == (125, "")
    assert outcome.json() == {
        "ok": False,
        "error": {"code": "workspace_not_found", "message": "there is no workspace 'x'", "hint": "look at the list"},
    }


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["workspace", "create"], "missing argument 'ENVIRONMENT'"),
        (["workspace", "create", "debian:12", "--label", "novalue"], "KEY=VALUE"),
        (["workspace", "create", "debian:12", "--label", "=x"], "KEY=VALUE"),
        (["workspace", "create", "debian:12", "--vcpu-count", "many"], "--vcpu-count"),
        (["workspace", "create", "debian:12", "--vcpu-count", "9"], "vcpu_count"),
        (["workspace", "create", "debian:12", "--name", "-x y"], "name"),
        (["workspace", "exec", "demo"], "missing argument"),
        (["workspace", "exec", "demo", "ls", "-l"], "write -- before the command"),
        (["workspace", "exec", "demo", "--timeout-seconds", "0", "--", "true"], "timeout_seconds"),
        (["workspce", "list"], "workspace"),
        (["run", "debian:12", "--no-such", "--", "true"], "--no-such"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
async def test_wrong_usage_exits_with_2_and_says_where(cli: Cli, argv: list[str], words: str, as_json: bool) -> None:
    position = argv.index("--") if "--" in argv else len(argv)
    outcome = await cli(*argv[:position], *["--json"] * as_json, *argv[position:])
    assert outcome.status == 2
    if as_json:
        assert outcome.json()["error"]["code"] == "invalid_argument"
        assert words in outcome.stdout
    else:
        assert outcome.stderr.startswith("error: ")
        assert outcome.stderr.count("\n") == 1
        assert words in outcome.stderr


async def test_undecodable_arguments_are_refused(cli: Cli, transport: FakeTransport) -> None:
    outcome = await cli("workspace", "exec", "demo", "--", "echo", "\udcff")
    assert outcome.status == 2
    assert r"argument 6 is not valid UTF-8: b'\xff'" in outcome.stderr
    assert not transport.asked


async def test_a_defect_is_one_line_that_says_how_to_see_more(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["list_workspaces"] = KeyError("oops")
    outcome = await cli("workspace", "list")
    assert outcome.status == 125
    assert outcome.stderr.startswith("error: unexpected KeyError: 'oops' (")
    assert "PYRO_DEBUG=1" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


async def test_debugging_shows_the_traceback(
    cli: Cli, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.answers["list_workspaces"] = KeyError("oops")
    monkeypatch.setenv("PYRO_DEBUG", "1")
    assert "Traceback" in (await cli("workspace", "list")).stderr


@pytest.mark.parametrize("kind", PyroError.__subclasses__())
async def test_every_kind_of_error_has_its_status(cli: Cli, transport: FakeTransport, kind: type[PyroError]) -> None:
    transport.answers["list_workspaces"] = kind("it failed", hint="mend it")
    assert (await cli("workspace", "list")).status == kind.exit_status


async def test_a_console_tail_stays_on_the_line_of_its_error(cli: Cli, transport: FakeTransport) -> None:
    transport.answers["list_workspaces"] = WorkspaceFailed("the VM ended:\n  panic\x1b[31m\n\n  end\n")
    assert (await cli("workspace", "list")).stderr == "error: the VM ended: | panic\\x1b[31m | end\n"
