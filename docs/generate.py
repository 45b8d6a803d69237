"""Writes the files derived from the async client and the OPERATIONS table; with --check only says whether they are
stale."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from pyro_async.operations import OPERATIONS, Operation

ROOT = Path(__file__).resolve().parent.parent
BLOCKING = ROOT / "pyro_async" / "blocking.py"
TABLE = ROOT / "docs" / "operations.md"

BLOCKING_HEADER = '''"""Pyro: the sync client. Generated from AsyncPyro by docs/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_async.client import OnEvent, OnProgress
from pyro_async.operations import (
{names}
)
from pyro_async.portal import BlockingClient, BlockingStream

__all__ = ["Pyro"]


class Pyro(BlockingClient):
    """The sync client: ``with Pyro() as client``. Every method blocks; otherwise see AsyncPyro."""
'''


def blocking() -> str:
    """The text of blocking.py: each public method of AsyncPyro, blocking."""
    module = ast.parse((ROOT / "pyro_async" / "client.py").read_text())
    client = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "AsyncPyro")
    methods = [
        node
        for node in client.body
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    results = {name for node in methods if node.returns for name in _result_names(ast.unparse(node.returns))}
    names = "".join(f"    {name},\n" for name in sorted(results | {"WORKSPACE_PATH"})).rstrip("\n")
    return BLOCKING_HEADER.format(names=names) + "".join(_method(node) for node in methods)


def _result_names(returns: str) -> list[str]:
    """What has to be imported for an annotation of a result."""
    return ["ExecEvent"] if returns == "ExecStream" else [returns.removeprefix("OperationStream[").removesuffix("]")]


def _method(node: ast.AsyncFunctionDef | ast.FunctionDef) -> str:
    streams = isinstance(node, ast.FunctionDef)
    arguments = ast.unparse(node.args).replace("stdin: Stdin", "stdin: bytes | str | None")
    passed = [arg.arg for arg in node.args.args[1:]] + [f"{arg.arg}={arg.arg}" for arg in node.args.kwonlyargs]
    returns = ast.unparse(node.returns) if node.returns else "None"
    returns = returns.replace("ExecStream", "BlockingStream[ExecEvent]").replace("OperationStream", "BlockingStream")
    runner = "_stream" if streams else "_run"
    docstring = (ast.get_docstring(node) or "").replace("async with", "with").replace("async for", "for")
    text = "\n".join(f"        {line}" if line else "" for line in f'"""{docstring}'.splitlines())
    closing = '"""' if "\n" not in docstring else '\n        """'
    ignore = "  # noqa: A002 - the flag's public name" if "all:" in arguments else ""
    return (
        f"\n    def {node.name}({arguments}) -> {returns}:{ignore}\n{text}{closing}\n"
        f"        return self.{runner}(lambda client: client.{node.name}({', '.join(passed)}))\n"
    )


def table() -> str:
    """The text of operations.md."""
    rows = [
        f"| `{operation.name}` | `pyro {operation.cli}` | {_tool(operation)} | {_summary(operation.params.__doc__)} "
        f"| {_hints(operation)} |"
        for operation in OPERATIONS.values()
    ]
    head = (
        "# Operations\n\n"
        "Generated from the OPERATIONS table; every one is an SDK method, a command and an MCP tool.\n\n"
    )
    absent = [f"- `{each.name}`: {each.mcp_absent}." for each in OPERATIONS.values() if each.mcp_absent]
    foot = "\nWithout a tool, on purpose:\n\n" + "\n".join(absent) + "\n"
    return head + "| SDK | CLI | MCP | what it does | hints |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n" + foot


def _tool(operation: Operation) -> str:
    return f"`{operation.mcp}`" if operation.mcp else "–"


def _summary(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


def _hints(operation: Operation) -> str:
    return ", ".join(
        hint.replace("_", "-")
        for hint in ("read_only", "destructive", "idempotent", "open_world")
        if getattr(operation, hint)
    )


def _formatted(text: str) -> str:
    sort = [sys.executable, "-m", "ruff", "check", "--select=I", "--fix", "--stdin-filename", str(BLOCKING), "-"]
    for command in (sort, [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(BLOCKING), "-"]):
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> int:
    """Writes what has changed, or with --check names it; returns the exit status."""
    check = sys.argv[1:] == ["--check"]
    stale = 0
    for path, text in ((BLOCKING, _formatted(blocking())), (TABLE, table())):
        if path.exists() and path.read_text() == text:
            continue
        if check:
            stale += 1
            print(f"{path.relative_to(ROOT)} is stale: run `nox -s generate`")
        else:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
