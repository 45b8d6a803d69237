"""The tree of living tasks."""

from __future__ import annotations

from pathlib import Path

import anyio

from pyro_async import AsyncPyro
from pyro_async.operations import ExecStarted
from pyro_async.runtime.daemon import Daemon
from pyro_async.runtime.runtime import Runtime
from pyro_async.task_tree import TaskEntry, TaskNode, running_tasks, subtree, task_tree
from pyro_async.transport import daemon_tasks, daemon_transport
from tests.support.memory_guest import MemoryDriver, MemoryImages


def entry(number: int, parent: int | None, name: str) -> TaskEntry:
    return TaskEntry(id=number, parent_id=parent, name=name)


def test_tasks_stand_below_their_owner_by_name_with_readable_names() -> None:
    tree = task_tree(
        [
            entry(1, None, "pyro_async.runtime.daemon.serve_home"),
            entry(3, 1, "workspace a.b"),
            entry(2, 1, "pyro_async.runtime.daemon.Daemon._client"),
            entry(4, 3, "exec 7"),
            entry(9, 77, "somebody else's"),
        ]
    )
    assert tree == TaskNode(
        name="root",
        children=[
            TaskNode(name="client"),
            TaskNode(name="workspace a.b", children=[TaskNode(name="exec 7")]),
            TaskNode(name="somebody else's"),
        ],
    )
    assert subtree(tree, "exec 7") == TaskNode(name="exec 7")
    assert subtree(tree, "nothing") is None
    assert task_tree([]) == TaskNode(name="root")


async def test_the_tree_of_this_loop_holds_what_runs_in_it() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever, name="sleeper of this test")
        await anyio.wait_all_tasks_blocked()
        assert subtree(task_tree(running_tasks()), "sleeper of this test") is not None
        tasks.cancel_scope.cancel()


async def test_a_daemon_shows_a_workspace_with_its_machine_its_link_and_its_commands(
    tmp_path: Path, guests: MemoryDriver
) -> None:
    images = MemoryImages(tmp_path)
    assert await daemon_tasks(tmp_path) is None
    async with (
        Runtime(tmp_path, driver=guests, images=images) as runtime,
        anyio.create_task_group() as tasks,
    ):
        daemon = Daemon(runtime)
        await tasks.start(daemon.serve)
        async with daemon_transport(tmp_path) as transport, AsyncPyro(transport=transport) as client:
            made = await client.create_workspace("debian:12", name="ws")
            async with client.stream_exec("ws", ["sleep", "1000"]) as events:
                started = await anext(aiter(events))
                assert isinstance(started, ExecStarted)
                tree = await daemon_tasks(tmp_path)
        assert tree is not None
        workspace = subtree(tree, f"workspace {made.workspace_id}")
        assert workspace is not None
        names = {child.name for child in workspace.children}
        assert names >= {"machine", "link", f"exec {started.exec_id}"}
        assert subtree(tree, "clock") is not None
        daemon.stop()
